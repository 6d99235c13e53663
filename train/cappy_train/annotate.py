"""Annotation: instances with candidates become pairs of an instruction and a response with a score, in Parquet shards.

Scores are those of the Cappy paper (Tan et al., 2023): with choices 1 for the right one and 0 for others; in open
generation 1 for references, 0 for a response of another instance, and for every candidate its best Porter-stemmed
Rouge-L F-measure over the references.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from cappy_lite.arguments import check_count
from cappy_lite.errors import InputTypeError, InputValueError
from cappy_lite.rouge import rouge_l_pairs
from cappy_lite.session import available_cpus
from cappy_train.instance_tables import SCHEMA, Block, among, find_inputs, owners, read_blocks, texts
from cappy_train.instances import SPLITS
from cappy_train.shards import Plan, Shard, ShardFiles, Shards, ShardWriter, input_digests, open_writer
from cappy_train.workers import Threads, Workers

PAIRS = pa.schema(
    [
        ("instruction", pa.string()),
        ("response", pa.string()),
        ("score", pa.float32()),
        ("task", pa.string()),
        ("instance_id", pa.string()),
        ("source", pa.string()),
    ]
)
# The columns of pairs in which few texts are in many rows; Shards.read gives them as dictionaries.
REPEATED = ("instruction", "task", "instance_id", "source")
SHARD_INSTANCES = 4096
# Small, since training mixes row groups, and those of an input sorted by task are of one task each.
ROW_GROUP_INSTANCES = 64
# Sources of responses that are no candidates.
REFERENCE, CHOICE, RANDOM = "reference", "choice", "random"
# The source of candidates that answer nothing.
PROBE = "probe"
# How often another response is drawn for an instance of which the one drawn might be right.
DRAWS = 16
# Bad rows that an error names.
NAMED = 10

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def annotate(
    data: Sequence[str | Path],
    out: Path,
    *,
    seed: int = 0,
    split: str | None = None,
    shard_instances: int = SHARD_INSTANCES,
    skip_bad_rows: bool = False,
    threads: int | None = None,
    workers: Workers | None = None,
) -> Shards:
    """Writes the annotated pairs of instances, and goes on where an earlier call with the same inputs was interrupted.

    Args:
        data: files of instances or globs of such: JSON Lines, plain or gzip, or Parquet.
        out: folder for the shards; a new or an empty one, or one that this began.
        seed: of the responses drawn from other instances.
        split: "train", "dev" or "test": its instances alone; None: all.
        shard_instances: rows of the inputs that one shard is made of. Memory grows with it.
        skip_bad_rows: leave rows out that are no valid instances, and note them in the manifest.
        threads: how many score and write; None: as many as this process may keep busy.
        workers: what scores and writes instead of threads, such as a `cluster.Cluster`.

    Raises:
        InputValueError: an input is missing or damaged; rows are bad, of which the message names the first (no shard
            from theirs on is written); `out` has something else, is locked, or can't be written.
        InputTypeError: an option is of the wrong type.
    """
    shard_instances = check_count("shard_instances", shard_instances)
    threads = available_cpus() if threads is None else check_count("threads", threads)
    if split not in (None, *SPLITS):
        raise InputValueError(f"split is {split!r}: give one of {', '.join(SPLITS)}, or None for all")
    if not isinstance(seed, int):
        raise InputTypeError(f"seed must be an int, not {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise InputValueError(f"seed is {seed}: give a number from 0 to 2**63 - 1")
    paths = find_inputs(data)
    settings = {"seed": seed, "split": split, "shard_instances": shard_instances}
    with open_writer(out, _plan(paths, settings)) as writer:
        if writer.finished:
            return Shards(out)
        job = _Job(paths, writer.files, writer.done, shard_instances, seed, split, skip_bad_rows)
        return writer.finish(job.run(writer, workers or Threads(threads)))


def _plan(paths: Sequence[Path], settings: Mapping[str, object]) -> Plan:
    return {
        "stage": "annotate",
        # Another version may give other bytes.
        "versions": {package: metadata.version(package) for package in ("cappy-lite", "pyarrow")},
        "settings": dict(settings),
        "inputs": input_digests(paths),
    }


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be done with blocks, and where to; pickled for other machines."""

    paths: Sequence[Path]
    files: ShardFiles
    done: frozenset[int]
    rows: int
    seed: int
    split: str | None
    skip_bad_rows: bool

    def run(self, writer: ShardWriter, workers: Workers) -> int:
        """Annotates the blocks; returns how many there are. Reading, scoring and writing overlap."""
        count = 0
        bad_rows: list[str] = []
        results = workers.map(self.annotate_block, self.blocks)
        with closing(results), tqdm(desc="annotating", unit=" pairs", unit_scale=True, disable=None) as bar:
            for result in results:
                count += 1
                if isinstance(result, Shard):
                    writer.add(result)
                    bar.update(sum(result.row_groups))
                else:
                    bad_rows += result
        if bad_rows:
            named = "\n  ".join(bad_rows[:NAMED])
            raise InputValueError(
                f"bad rows: {len(bad_rows)}; correct them and give a new --out, or leave them out with "
                f"--skip-bad-rows, which goes on from what is written already\n  {named}"
                + ("\n  ..." if len(bad_rows) > NAMED else "")
            )
        return count

    def blocks(self) -> Iterator[tuple[Block, bool]]:
        """All blocks in order, and whether each is to be annotated; after a bad row the rest is only checked."""
        refused = False
        for block in read_blocks(self.paths, self.rows, skip=self.done):
            refused = refused or (bool(block.bad_rows) and not self.skip_bad_rows)
            if refused:
                block.table = SCHEMA.empty_table()
            yield block, not refused and block.number not in self.done

    def annotate_block(self, item: tuple[Block, bool]) -> Shard | list[str]:
        """The block's shard; or, if it isn't to be annotated, the bad rows in it."""
        block, wanted = item
        if not wanted:
            return block.bad_rows
        instances, others = block.table, 0
        if self.split is not None:
            instances = instances.filter(pc.equal(instances["split"], self.split)).combine_chunks()
            others = len(block.table) - len(instances)
        try:
            pairs, counts = annotate_instances(instances, seed=self.seed, block=block.number)
        except pa.ArrowException as error:  # 2 GiB of text in a column are too much for it
            raise InputValueError(
                f"rows {block.number * self.rows + 1:,} and on can't be annotated at a time ({error}): give fewer as "
                "--shard-instances"
            ) from error
        counts |= {"other_splits": others, "bad_rows": len(block.bad_rows)}
        return self.files.write(
            block.number, _row_groups(pairs), PAIRS, repeated=REPEATED, counts=counts, notes=block.bad_rows
        )


@dataclass(frozen=True, slots=True)
class Pairs:
    """Responses, sorted by the instance that each belongs to.

    instances: n rows of instances.
    owners: (m,), the row of each response's instance.
    responses, sources: m texts; sources as a dictionary.
    scores: float32, (m,), 0..1.
    """

    instances: pa.Table
    owners: Ints
    responses: pa.Array
    sources: pa.DictionaryArray
    scores: npt.NDArray[np.float32]


def annotate_instances(instances: pa.Table, *, seed: int, block: int) -> tuple[Pairs, dict[str, int]]:
    """The pairs of some instances, and counts of what they are.

    For each instance: its references (score 1); its other choices (0); its candidates (best Rouge-L F-measure; 1 if it
    is a reference but for case and spaces, which tells where Rouge-L finds no words; 0 if it has all words of a wrong
    choice and no others, or if its source is "probe" and it isn't right); without choices, a reference of another of
    these instances (0). Of equal responses the first counts.

    Args:
        instances: valid rows in the columns of `instance_tables.SCHEMA`.
        seed, block: what the other instances' responses are drawn by.
    """
    references, choices = instances["references"], instances["choices"]
    candidates = texts(instances["candidates"])
    random, random_owners = _random_responses(instances, seed, block)
    parts = [
        (texts(references), owners(references)),
        (texts(choices), owners(choices)),
        (pc.struct_field(candidates, "text"), owners(instances["candidates"])),
        (random, random_owners),
    ]
    counts = [len(part) for part, _ in parts]
    kinds = np.repeat(np.arange(4), counts)
    all_owners = np.concatenate([part_owners for _, part_owners in parts])
    kept = _first_of_equals(pa.concat_arrays([part for part, _ in parts]), all_owners)
    kinds, row_owners = kinds[kept], all_owners[kept]
    responses = pa.concat_arrays([part for part, _ in parts]).take(pa.array(kept))
    sources = pa.concat_arrays(
        [
            pa.repeat(REFERENCE, counts[0]),
            pa.repeat(CHOICE, counts[1]),
            pc.struct_field(candidates, "source"),
            pa.repeat(RANDOM, counts[3]),
        ]
    ).take(pa.array(kept))
    scores = (kinds == 0).astype(np.float64)
    sampled = np.flatnonzero(kinds == 2)
    scores[sampled] = _candidate_scores(responses.take(pa.array(sampled)), row_owners[sampled], instances)
    # A copy of the instruction has words of the right answer and is none. Where its label is a little above that of a
    # wrong choice, it may win wherever the wrong choice seems right.
    is_probe = _mask(pc.equal(sources, PROBE))
    scores[is_probe & (scores < 1)] = 0
    pairs = Pairs(instances, row_owners, responses, sources.dictionary_encode(), scores.astype(np.float32))
    kind_counts = np.bincount(kinds, minlength=4).tolist()
    open_ended = ~instances["choices"].is_valid().to_numpy()
    wordless = np.ones(len(instances), bool)
    wordless[owners(references)[_mask(pc.match_substring_regex(texts(references), "[A-Za-z0-9]"))]] = False
    return pairs, {
        "instances": len(instances),
        "references": kind_counts[0],
        "wrong_choices": kind_counts[1],
        "candidates": kind_counts[2],
        "random": kind_counts[3],
        # References repeat choices; those are no duplicates.
        "duplicates": int(sum(counts) - len(kept) - _repeated_by_choices(instances)),
        "without_random": int(open_ended.sum()) - len(random),
        "references_without_words": int((wordless & open_ended).sum()),
    }


def _repeated_by_choices(instances: pa.Table) -> int:
    choices, references = instances["choices"], instances["references"]
    return int(among(texts(choices), owners(choices), texts(references), owners(references)).sum())


def _first_of_equals(responses: pa.Array, row_owners: Ints) -> Ints:
    """Places of the responses without repetitions in an instance, sorted by instance."""
    codes = responses.dictionary_encode().indices.to_numpy().astype(np.int64)
    _, first = np.unique(row_owners * (len(codes) + 1) + codes, return_index=True)
    first.sort()
    kept: Ints = first[np.argsort(row_owners[first], kind="stable")]
    return kept


def _candidate_scores(candidates: pa.Array, row_owners: Ints, instances: pa.Table) -> Floats:
    references, choices = instances["references"], instances["choices"]
    scores = _best_fmeasures(candidates, row_owners, texts(references), owners(references), len(instances))
    wordless = np.flatnonzero(scores == 0)
    if len(wordless):
        some = _normal(candidates.take(pa.array(wordless)))
        scores[wordless] = among(some, row_owners[wordless], _normal(texts(references)), owners(references))
    # A choice can have most words of another and be wrong all the same: "not entailment".
    doubtful = np.flatnonzero((scores > 0) & (scores < 1) & choices.is_valid().to_numpy()[row_owners])
    if len(doubtful):
        said = _best_fmeasures(
            candidates.take(pa.array(doubtful)), row_owners[doubtful], texts(choices), owners(choices), len(instances)
        )
        scores[doubtful[said == 1]] = 0
    return scores


def _best_fmeasures(some: pa.Array, row_owners: Ints, others: pa.Array, other_owners: Ints, count: int) -> Floats:
    """The best stemmed Rouge-L F-measure of each text over the others of its owner, of which there is one at least."""
    if not len(some):
        return np.zeros(0)
    group_sizes = np.bincount(other_owners, minlength=count)
    group_starts = np.cumsum(group_sizes) - group_sizes
    sizes = group_sizes[row_owners]
    starts = np.cumsum(sizes) - sizes
    place_in_group = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    predictions = np.repeat(_objects(some), sizes)
    references = _objects(others)[np.repeat(group_starts[row_owners], sizes) + place_in_group]
    fmeasures = rouge_l_pairs(predictions.tolist(), references.tolist(), stem=True)[:, 2]
    best: Floats = np.maximum.reduceat(fmeasures, starts)
    return best


def _random_responses(instances: pa.Table, seed: int, block: int) -> tuple[pa.Array, Ints]:
    """For each instance without choices a reference of another one, and the instances' rows.

    It is none of the instance's own references, even but for case and spaces, and of no instance with the same
    instruction. An instance for which none was found has none.
    """
    references = instances["references"]
    normal, reference_owners = _normal(texts(references)), owners(references)
    open_ended = ~instances["choices"].is_valid().to_numpy()
    pool = np.flatnonzero(open_ended[reference_owners])
    instruction_codes = _one(instances["instruction"]).dictionary_encode().indices.to_numpy()
    drawn = np.full(len(instances), -1)
    waiting = np.flatnonzero(open_ended)
    # Its raw numbers are the same in every version of NumPy.
    generator = np.random.PCG64(np.random.SeedSequence([seed, block]))
    for _ in range(DRAWS):
        if not len(waiting):
            break
        numbers = np.atleast_1d(generator.random_raw(len(waiting)))
        places = pool[(numbers % np.uint64(len(pool))).astype(np.int64)]
        wrong = instruction_codes[reference_owners[places]] != instruction_codes[waiting]
        wrong &= ~among(normal.take(pa.array(places)), waiting, normal, reference_owners)
        drawn[waiting[wrong]] = places[wrong]
        waiting = waiting[~wrong]
    rows = np.flatnonzero(drawn >= 0)
    return texts(references).take(pa.array(drawn[rows])), rows


def _row_groups(pairs: Pairs) -> Iterator[pa.Table]:
    """Tables of whole instances. What repeats is a dictionary, so that nothing is copied for each pair."""
    for start in range(0, len(pairs.instances), ROW_GROUP_INSTANCES):
        first, last = np.searchsorted(pairs.owners, [start, start + ROW_GROUP_INSTANCES])
        rows = pa.array((pairs.owners[first:last] - start).astype(np.int32))
        part = pairs.instances.slice(start, ROW_GROUP_INSTANCES)
        columns = [
            _one(part["instruction"]).dictionary_encode().take(rows),
            pairs.responses.slice(first, last - first),
            pa.array(pairs.scores[first:last]),
            _one(part["task"]).dictionary_encode().take(rows),
            _one(part["id"]).dictionary_encode().take(rows),
            pairs.sources.slice(first, last - first),
        ]
        yield pa.Table.from_arrays(columns, names=PAIRS.names)


def _one(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    return pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _normal(column: pa.Array) -> pa.Array:
    """Texts without case and with single spaces, as `neighbours.normal` makes them."""
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pc.utf8_lower(column)))
    return pc.binary_join(words, " ")


def _mask(values: pa.Array) -> Mask:
    mask: Mask = values.to_numpy(zero_copy_only=False)
    return mask


def _objects(column: pa.Array) -> npt.NDArray[np.object_]:
    strings: npt.NDArray[np.object_] = column.to_numpy(zero_copy_only=False)
    return strings
