"""A run that trained a cross-encoder becomes a joint model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cappy_train.bert_weights import why_not_packed
from cappy_train.checkpoint import quietly
from cappy_train.evaluate import dev_questions
from cappy_train.files import Source, folder_written_whole
from cappy_train.import_checkpoint import write_joint_model
from cappy_train.joint_network import joint_checkpoint
from cappy_train.quantisation_texts import draw_quantisation_texts
from cappy_train.training import result_weights


def export_joint(
    state: dict[str, Any],
    tokenizer: Path,
    dev: Source,
    out: Path,
    *,
    origin: Mapping[str, str],
    training: Mapping[str, float],
    notes: str,
    float32: bool,
) -> None:
    """Makes the model folder `out`, whole or not at all; it reads as many tokens as training did.

    Args:
        state: a checkpoint of a JointNetwork's run.
        tokenizer: the run's tokenizer.json.
        dev: files of instances, whose split dev calibrates 8 bits, of networks of BERT's build.
        out: the folder to make.
        origin: name, base_model and licence.
        training: figures for config and card, as `export.training_figures` has them.
        notes: see `export.export`.
        float32: don't round weights to 8 bits.

    Raises:
        InputValueError: `dev` is missing or damaged, or has too few questions to calibrate.
        ModelError: the graph or its quantisation doesn't agree with the network as `check_joint_parity` demands.
    """
    checkpoint = joint_checkpoint(state["sizes"], result_weights(state), tokenizer)
    quantisation_texts = None
    if not float32 and not why_not_packed(checkpoint):
        questions = dev_questions(dev)
        asked = ((question.instruction, question.candidates) for question in questions)
        quantisation_texts = draw_quantisation_texts(asked, f"split dev of {dev}")
    with quietly(), folder_written_whole(out) as folder:
        write_joint_model(
            folder,
            checkpoint,
            identity={**origin, "max_tokens": state["settings"]["long"]},
            activation="sigmoid",
            quantise=not float32,
            quantisation_texts=quantisation_texts,
            training=training,
            notes=notes,
        )
