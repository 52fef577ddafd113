"""LangChain: a released model as its embeddings. Needs ``pip install langchain-huggingface``.

    lbr-st build lbr-chem
    python examples/langchain_search.py lbr-chem "vitamin C"

LangChain calls ``encode`` for queries and documents alike, so it is told the name of each side's prompt.
"""

import sys

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings

DOCUMENTS = [
    "The L-enantiomer of ascorbic acid, an antioxidant.",
    "An organic sodium salt that contains hydrogencarbonate.",
    "A primary alcohol that is ethane in which one of the hydrogens is substituted by a hydroxy group.",
]


def main(folder: str, *questions: str) -> None:
    """Index the documents and print those found, best first, with their cosine."""
    embeddings = HuggingFaceEmbeddings(
        model_name=folder,
        encode_kwargs={"prompt_name": "document"},
        query_encode_kwargs={"prompt_name": "query"},
    )
    store = InMemoryVectorStore.from_texts(DOCUMENTS, embeddings)
    for question in questions:
        print(question)
        for document, score in store.similarity_search_with_score(question, k=2):
            print(f"  {score:.3f}  {document.page_content}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["lbr-chem", "vitamin C", "baking soda", "grain alcohol"]))
