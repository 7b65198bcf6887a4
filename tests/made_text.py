"""A sentence encoder of three small layers, as a folder that sentence-transformers loads."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("war", "peace", "sea", "stars", "love", "ghost", "ship", "king", "title", "number")
DIM = 16


def tiny_encoder(folder: Path, kind: str = "bert") -> Path:
    """Write one with random weights: `kind` is bert, roberta or distilbert."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Normalize,
        Pooling,
        Transformer,
    )
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        DistilBertConfig,
        DistilBertModel,
        RobertaConfig,
        RobertaModel,
    )

    inner = folder / "inner"
    inner.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = [*special, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    (inner / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(5)
    sizes = {"vocab_size": len(vocabulary), "max_position_embeddings": 64}
    if kind == "distilbert":
        config = DistilBertConfig(dim=DIM, n_layers=3, n_heads=2, hidden_dim=32, **sizes)
        model = DistilBertModel(config)
    else:
        make, build = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel)}[
            kind
        ]
        wide = {"hidden_size": DIM, "num_hidden_layers": 3, "num_attention_heads": 2}
        model = build(make(intermediate_size=32, initializer_range=0.3, **wide, **sizes))
    model.eval().save_pretrained(inner)
    BertTokenizer(str(inner / "vocab.txt")).save_pretrained(inner)
    whole = SentenceTransformer(
        modules=[Transformer(str(inner)), Pooling(DIM), Normalize()], device="cpu"
    )
    whole.save(str(folder / "encoder"))
    return folder / "encoder"
