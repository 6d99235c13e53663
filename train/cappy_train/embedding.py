"""Similarity of texts by the unmodified MiniLM: a baseline, and what the shipped model was trained from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from cappy_train.evaluate import FloatArray, ScoreFunction
from cappy_train.network import from_bert

# What all-MiniLM-L6-v2 was published to read (its sentence_bert_config.json).
MINILM_TOKENS = 256
EMBEDDING_BATCH = 32
# Questions whose texts are embedded at a time.
CHUNK_QUESTIONS = 512


def minilm_cosine(folder: Path) -> ScoreFunction:
    """Cosines of the embeddings of instruction and candidate, by the BERT in `folder`: the unmodified all-MiniLM-L6-v2.

    As the model was published: the last states of all tokens, [CLS] and [SEP] too, are averaged, over MINILM_TOKENS
    tokens at most.
    """
    embedder = Embedder(folder)

    def score(pairs: list[tuple[str, tuple[str, ...]]]) -> list[FloatArray]:
        scores = []
        with tqdm(total=len(pairs), desc="MiniLM", unit="question") as progress:
            for start in range(0, len(pairs), CHUNK_QUESTIONS):
                chunk = pairs[start : start + CHUNK_QUESTIONS]
                texts = sorted({text for instruction, candidates in chunk for text in (instruction, *candidates)})
                row = {text: index for index, text in enumerate(texts)}
                embeddings = embedder.embed(texts)
                for instruction, candidates in chunk:
                    scores.append(embeddings[[row[text] for text in candidates]] @ embeddings[row[instruction]])
                progress.update(len(chunk))
        return scores

    return score


class Embedder:
    """The BERT in a folder, which makes mean-pooled embeddings of texts."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MINILM_TOKENS)
        self._network = from_bert(folder).eval()

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings of length 1, (n, hidden) float64."""
        rows = [torch.tensor(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        means: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(rows), EMBEDDING_BATCH):
                batch = [rows[index] for index in order[start : start + EMBEDDING_BATCH]]
                ids = pad_sequence(batch, batch_first=True)
                positions = torch.arange(ids.shape[1]).expand_as(ids)
                lengths = torch.tensor([[len(row)] for row in batch])
                real = positions < lengths
                # One segment a text: the network's attention is then BERT's own. Padding is segment -1.
                states = self._network.encode(ids, positions, torch.zeros_like(ids), real.long() - 1)
                means.extend((states * real[:, :, None]).sum(dim=1) / lengths)
        embeddings: FloatArray = np.empty((len(rows), self._network.config.hidden))
        embeddings[order] = torch.stack(means).double().numpy()
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings
