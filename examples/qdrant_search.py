"""A vector store: Qdrant, here in memory. Needs a released model and ``pip install qdrant-client``.

    lbr-st build lbr-chem
    python examples/qdrant_search.py lbr-chem "vitamin C"

The store never sees a model: it is given documents as ``encode_document`` embeds them, and queries as ``encode_query``.
"""

import sys

from qdrant_client import QdrantClient, models
from sentence_transformers import SentenceTransformer

DOCUMENTS = [
    "The L-enantiomer of ascorbic acid, an antioxidant.",
    "An organic sodium salt that contains hydrogencarbonate.",
    "A primary alcohol that is ethane in which one of the hydrogens is substituted by a hydroxy group.",
]


def main(folder: str, *questions: str) -> None:
    """Index the documents and print those found, best first, with their cosine."""
    model = SentenceTransformer(folder)
    store = QdrantClient(":memory:")  # path="my-index" keeps it on disk, url="http://…" is a server
    shape = models.VectorParams(size=model.get_embedding_dimension(), distance=models.Distance.COSINE)
    store.create_collection("documents", vectors_config=shape)
    store.upload_collection(
        "documents",
        vectors=model.encode_document(DOCUMENTS),
        payload=[{"text": text} for text in DOCUMENTS],
        ids=range(len(DOCUMENTS)),
    )
    for question in questions:
        print(question)
        for hit in store.query_points("documents", query=model.encode_query(question).tolist(), limit=2).points:
            print(f"  {hit.score:.3f}  {hit.payload['text']}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["lbr-chem", "vitamin C", "baking soda", "grain alcohol"]))
