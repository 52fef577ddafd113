"""A SentenceTransformer whose embedding is read out of the text itself, so that rankings are known beforehand."""


def vector_model(read, size=2):
    """Return a model that embeds a text as ``read(text)``, a list of ``size`` numbers."""
    import torch
    from sentence_transformers import SentenceTransformer

    class Vectors(torch.nn.Module):
        def preprocess(self, texts, **kwargs):
            return {"numbers": torch.tensor([read(text) for text in texts])}

        tokenize = preprocess

        def forward(self, features, **kwargs):
            features["sentence_embedding"] = features["numbers"].float()
            return features

        def get_embedding_dimension(self):
            return size

        get_sentence_embedding_dimension = get_embedding_dimension

    return SentenceTransformer(modules=[Vectors()], device="cpu")


def numbers(text):
    """Read "1 0" as the vector (1, 0)."""
    return [float(number) for number in text.split()]


def evaluate_beir(model, data, *, name="a/b", batch_size=64, command="", **options):
    """Score a model on a retrieval set through BEIR."""
    from lbr_st.evaluation.mteb_task import retrieval_task
    from lbr_st.evaluation.run import run_beir
    from lbr_st.evaluation.systems import embedding_system

    how = {"batch_size": batch_size, "command": command, "name": data.name}
    return run_beir(embedding_system(model, name, **options), retrieval_task(data), **how)


def released(base, folder):
    """Release an untrained model into a folder, and return the model as Sentence Transformers loads it."""
    from sentence_transformers import SentenceTransformer

    from lbr_st.model.build import build_model
    from lbr_st.publish.stock import release

    return SentenceTransformer(str(release(build_model(base, max_seq_length=64), folder)), device="cpu")
