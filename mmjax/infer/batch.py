"""Many records through a model: JSON lines in, JSON lines out, in the order they came.

Records are grouped into the token plan's static buckets, so that each program compiles at most once a
bucket however many records there are. A record that cannot be read becomes a line that says so; a run that
was cut off goes on behind the last line it wrote.
"""

import contextlib
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmjax.data.collate import collate
from mmjax.data.conversation import Conversation, TextPart, parse_record
from mmjax.data.processor import Processor
from mmjax.data.samples import Bucket, Sample
from mmjax.data.sources import open_source
from mmjax.data.token_plan import TokenPlan
from mmjax.infer.answers import Answers, Makers, Making, answer, begun
from mmjax.infer.generate import GenerateOptions, Programs, check_room
from mmjax.infer.masks import Scene, scene_of
from mmjax.infer.media_files import OUTPUTS, by_kind, write_made
from mmjax.infer.retrieve import Retrieved
from mmjax.model import MultimodalLM

READERS = 2  # threads that decode images while the model computes
WINDOW = 8  # batches that may wait for the oldest record before its bucket runs part full


@dataclass(frozen=True)
class BatchReport:
    """What a run did. compilations: program -> times compiled in this run, each at most len(buckets)."""

    records: int
    errors: int
    skipped: int
    batches: int
    buckets: tuple[Bucket, ...]
    compilations: Mapping[str, int]

    def __str__(self) -> str:
        compiled = ", ".join(f"{name} {count}" for name, count in sorted(self.compilations.items())) or "nothing"
        before = f", {self.skipped} done before" if self.skipped else ""
        return (
            f"{self.records} records ({self.errors} with an error{before}) in {self.batches} batches of "
            f"{len(self.buckets)} buckets; compiled: {compiled}"
        )


@dataclass(frozen=True)
class Drawn:
    """How a model makes media, with the programs for it, and the folder that they are written to."""

    making: Making
    makers: Makers
    directory: str


@dataclass(frozen=True)
class _Prompt:
    """One record made ready: `line` is the beginning of its output, finished if there is no sample."""

    index: int
    line: dict[str, Any]
    sample: Sample | None = None
    scene: Scene | None = None


def run_batch(
    model: MultimodalLM,
    params: dict,
    processor: Processor,
    records: Any,
    options: GenerateOptions,
    plan: TokenPlan,
    batch_size: int,
    write: Callable[[dict[str, Any]], None],
    programs: Programs | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    skip: int = 0,
    image_root: str | None = None,
    drawn: Drawn | None = None,
) -> BatchReport:
    """Generates an answer to every record.

    Args:
        model, params: the model and its parameters, as `generate` takes them.
        processor: makes the samples, and text of the answers.
        records: a source or a sequence of dicts, in a format of `parse_record`. If the last message is an
            assistant's, it is what the model's answer may be compared with, and not part of the prompt.
        options: how to generate; record i draws from (seed, i), whatever batch it falls in.
        plan: the buckets, usually `processor.plan`; its `too_long` should be "error", since a prompt cut off
            is another prompt.
        batch_size: rows of every batch; a last batch that is not full repeats a row, so that no
            new shape compiles.
        write: takes one line for each record, in the records' order: {"index", "id" (if the record has one),
            "text", "num_tokens", "reference" (the assistant's last message, if any)}, and with `drawn` "images",
            "videos", "audios", "masks", paths of what was made, "retrieved", see `retrieved_line`, and "image_codes",
            whole numbers [h][w] for each image that was written as tokens without a decoder to show it; or {"index",
            "id", "error"} for a record that could not be made into a prompt.
        programs: as in `generate`.
        progress: called with (records written, all records, errors so far).
        skip: number of records at the beginning to leave out, because their lines exist.
        image_root: folder that relative paths in the records start from.
        drawn: None leaves signals undrawn, and no image is asked for.

    Raises:
        ValueError: batch_size below 1. What fails in the model itself is raised; bad records are not.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    source = open_source(records)
    programs = Programs(model) if programs is None else programs
    compiled_before = Counter(programs.compilations)
    waiting: dict[Bucket, list[_Prompt]] = {}
    finished: dict[int, dict[str, Any]] = {}
    used: dict[Bucket, None] = {}
    drawn = Drawn(Making(), Makers(model), "") if drawn is None else drawn
    made_before = drawn.makers.compilations
    written, errors, batches = skip, 0, 0

    def prepare(index: int) -> _Prompt:
        return _prepare(source, index, processor, image_root, model, options, plan, drawn)

    def run(bucket: Bucket) -> None:
        nonlocal batches
        prompts = waiting.pop(bucket)
        used[bucket] = None
        batches += 1
        finished.update(_answer(model, params, processor, prompts, options, plan, batch_size, programs, drawn))

    def hand_over() -> None:
        nonlocal written, errors
        while written in finished:
            line = finished.pop(written)
            write(line)
            written += 1
            errors += "error" in line
            if progress is not None:
                progress(written, len(source), errors)

    for prompt in _ahead(prepare, range(skip, len(source)), 2 * batch_size):
        if prompt.sample is None:
            finished[prompt.index] = prompt.line
        else:
            bucket = replace(plan.bucket([prompt.sample]), targets=0)  # there is no loss, so nothing to tell apart
            waiting.setdefault(bucket, []).append(prompt)
            if len(waiting[bucket]) == batch_size:
                run(bucket)
        hand_over()
        if prompt.index - written >= WINDOW * batch_size:
            run(next(b for b, prompts in waiting.items() if prompts[0].index == written))
            hand_over()
    for bucket in list(waiting):
        run(bucket)
    hand_over()
    compiled = {name: n - compiled_before[name] for name, n in programs.compilations.items()}
    compiled["drawing"] = drawn.makers.compilations - made_before
    return BatchReport(
        records=len(source) - skip,
        errors=errors,
        skipped=skip,
        batches=batches,
        buckets=tuple(used),
        compilations={name: count for name, count in compiled.items() if count},
    )


def run_file(
    model: MultimodalLM,
    params: dict,
    processor: Processor,
    input_path: str | os.PathLike,
    output_path: str | os.PathLike,
    options: GenerateOptions,
    plan: TokenPlan,
    batch_size: int = 8,
    programs: Programs | None = None,
    image_root: str | None = None,
    making: Making | None = None,
    makers: Makers | None = None,
) -> BatchReport:
    """`run_batch` from a JSONL (or JSON) file to a JSONL file, with progress on stderr.

    Lines that the output file holds already are kept and their records skipped; each new line is flushed,
    so a run that is killed loses only what was under way. Relative image paths start from `image_root`, by
    default the input file's folder. With `making`, the media that a model makes are written to a folder beside the
    output, of its name.

    Raises:
        FileNotFoundError: naming the input.
        ValueError: the output file holds lines that do not belong to this input.
    """
    source = open_source(os.fspath(input_path))
    root = os.path.dirname(os.path.abspath(input_path)) if image_root is None else image_root
    done = lines_done(output_path, len(source))
    drawn = None
    if making is not None:
        folder = os.path.splitext(os.fspath(output_path))[0]
        drawn = Drawn(making, Makers(model) if makers is None else makers, folder)
    with (
        open(output_path, "a", encoding="utf-8") as output,
        progress_on_stderr(done, len(source)) as progress,
    ):

        def write(line: dict[str, Any]) -> None:
            output.write(json.dumps(line, ensure_ascii=False) + "\n")
            output.flush()

        return run_batch(
            model, params, processor, source, options, plan, batch_size, write, programs, progress, done, root, drawn
        )


def lines_done(output_path: str | os.PathLike, records: int) -> int:
    """How many records an output file answers; a last line without its end is cut off the file.

    Raises:
        ValueError: a line that this module did not write for line number `index`, or more lines than records.
    """
    if not os.path.exists(output_path):
        return 0
    done, whole = 0, 0
    with open(output_path, "rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            try:
                index = json.loads(line)["index"]
            except (ValueError, KeyError, TypeError):
                index = None
            if index != done or done >= records:
                raise ValueError(
                    f"{os.fspath(output_path)} line {done + 1} is not the answer to record {done} of "
                    f"{records}: the file belongs to another run; give another output, or delete it"
                )
            done += 1
            whole += len(line)
    return done


@contextlib.contextmanager
def progress_on_stderr(
    start: int, total: int, verb: str = "generate", done_verb: str = "generated", what: str = "records"
) -> Iterator[Callable[[int, int, int], None]]:
    """A `progress` for `run_batch`: a bar if stderr is a terminal, else a line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        errors_column = TextColumn("{task.fields[errors]} errors")
        with Progress(*columns, errors_column, console=Console(stderr=True)) as bar:
            task = bar.add_task(verb, total=total, completed=start, errors=0)
            yield lambda done, _, errors: bar.update(task, completed=done, errors=errors)
        return
    began = last = time.monotonic()

    def tell(done: int, total: int, errors: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10 or done == total:
            last = now
            rate = (done - start) / max(now - began, 1e-9)
            print(
                f"{done_verb} {done}/{total}, {errors} errors, {rate:.2f} {what}/s",
                file=sys.stderr,
                flush=True,
            )

    yield tell


def _prepare(source, index, processor, image_root, model, options, plan, drawn) -> _Prompt:
    line: dict[str, Any] = {"index": index}
    try:
        record = source[index]
        if "id" in record:
            line["id"] = record["id"]
        conversation, reference = without_answer(parse_record(record, source.name(index), image_root))
        sample = processor.sample(conversation, add_generation_prompt=True)
        sample = begun(model, sample, drawn.making, processor, drawn.makers.generation)
        # Without a folder nothing is written that masks could be in.
        scene = scene_of(model, processor, conversation) if drawn.directory else None
        plan.check(sample)
        check_room(len(sample), options.max_new_tokens, model.config.backbone.max_positions, sample.name)
    except MemoryError:
        raise
    except Exception as error:  # what a decoder, a tokenizer or a template raises on bad data is up to them
        return _Prompt(index, {**line, "error": f"{type(error).__name__}: {error}"})
    if reference is not None:
        line["reference"] = reference
    return _Prompt(index, line, sample, scene)


def without_answer(conversation: Conversation) -> tuple[Conversation, str | None]:
    """The conversation up to the last turn that is not an assistant's, and the text of the turn behind it.

    Raises:
        ValueError: several branches, or nobody but an assistant speaks.
    """
    if conversation.branches:
        raise ValueError(f'sample "{conversation.name}": has branches; give one conversation a record')
    messages = list(conversation.messages)
    reference = None
    while messages and messages[-1].role == "assistant":
        reference = "".join(part.text for part in messages.pop().parts if isinstance(part, TextPart))
    if not messages:
        raise ValueError(f'sample "{conversation.name}": no message to answer; the last should be a user\'s')
    return replace(conversation, messages=tuple(messages)), reference


def _answer(
    model, params, processor, prompts, options, plan, batch_size, programs, drawn
) -> dict[int, dict[str, Any]]:
    """Record number -> finished line, for at most `batch_size` prompts of one bucket."""
    rows = [*prompts, *[prompts[-1]] * (batch_size - len(prompts))]
    batch = collate([prompt.sample for prompt in rows], plan, pad_id=options.pad_id)
    numbers = np.array([prompt.index for prompt in rows], np.int32)
    given = model, params, batch, options, drawn.making, programs, drawn.makers
    found = answer(*given, rows=numbers, count=len(prompts), scenes=[prompt.scene for prompt in prompts])
    lines = {}
    for row, prompt in enumerate(prompts):
        length = int(found.spoken.lengths[row])
        said = answer_text(processor.tokenizer, found.spoken.tokens[row, :length], options)
        head = {key: prompt.line[key] for key in ("index", "id") if key in prompt.line}
        count = int(found.out.lengths[row])
        more = _media(found, row, drawn, f"{prompt.index:06d}")
        lines[prompt.index] = {**head, "text": said, "num_tokens": count, **more, **prompt.line}
    return lines


def _media(found: Answers, row: int, drawn: Drawn, stem: str) -> dict[str, Any]:
    """What a line says of the media of a row, whose files are written."""
    galleries = drawn.making.galleries
    own = {port: media[row] for port, media in found.made.items() if port in OUTPUTS and port not in galleries}
    line: dict[str, Any] = write_made(drawn.directory, stem, own)
    _, retrieved = by_kind(found.made, galleries)
    if retrieved:
        line["retrieved"] = {port: [retrieved_line(one) for one in rows[row]] for port, rows in retrieved.items()}
    if found.codes is not None and found.codes[row] and not own:
        line["image_codes"] = [codes.tolist() for codes in found.codes[row]]
    return line


def retrieved_line(found: Retrieved) -> dict[str, Any]:
    """What a line of answers says of a signal that was looked up: its number in the row, names (or numbers) of the
    images, the best first, and their cosines."""
    names = list(found.names) if found.names else np.asarray(found.indices).tolist()
    scores = [round(float(score), 6) for score in found.scores]
    return {"signal": found.signal, "names": names, "scores": scores}


def answer_text(tokenizer: Any, tokens: Any, options: GenerateOptions) -> str:
    """Generated ids as text, without the stop token they may end in."""
    ids = [int(token) for token in tokens]
    if ids and ids[-1] in options.stop_ids:
        ids.pop()
    return tokenizer.decode(ids)


def _ahead(prepare: Callable[[int], _Prompt], indices: range, count: int) -> Iterator[_Prompt]:
    """`prepare` of every index in order, `count` of them ahead in threads."""
    pool = ThreadPoolExecutor(READERS)
    try:
        coming = deque(pool.submit(prepare, i) for i in indices[:count])
        for index in indices[count:]:
            yield coming.popleft().result()
            coming.append(pool.submit(prepare, index))
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
