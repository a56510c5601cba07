"""The command line: `mmjax train | generate | chat | convert | export | systems | data | demo`.

Nothing heavy is imported before a command runs, so that `--help` and a typo answer at once. An error that the
library raises on purpose is one line on stderr and exit code 2; MMJAX_TRACEBACK=1 shows where it came from.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mmjax.cli_generation import add_drawing, add_sampling, read_generation
from mmjax.config import ConfigError, nearest
from mmjax.memory import keep_freed_memory


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors look like all others and name the nearest right word."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        self.exit(2, f"mmjax: error: {message} (see `{self.prog} --help`)\n")

    def _check_value(self, action, value):
        choices = action.choices
        if choices is not None and value not in choices:
            known, name = ", ".join(choices), "/".join(action.option_strings) or action.metavar or action.dest
            self.error(f"unknown {name} {value!r}.{nearest(value, choices)} There are: {known}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for an error that is explained, 130 when interrupted."""
    parser = build_parser()
    args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    args.overrides = _overrides(args, rest)
    keep_freed_memory()
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("mmjax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads what is printed, `head` for one, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("MMJAX_TRACEBACK", "0") not in ("", "0") or not _explained(error):
            raise
        print(f"mmjax: error: {_message(error)}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed arguments."""
    parser = _Parser(
        prog="mmjax",
        description="Multimodal large language models in JAX.",
        epilog="`mmjax COMMAND --help` shows a command's options and an example.",
    )
    parser.set_defaults(run=lambda args: parser.print_help(), known=parser)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=_Parser)
    for add in (_add_train, _add_generate, _add_chat, _add_convert, _add_export):
        add(commands)
    for add in (_add_systems, _add_data, _add_demo):
        add(commands)
    return parser


def _command(commands, name: str, run, summary: str, example: str) -> argparse.ArgumentParser:
    description = summary[0].upper() + summary[1:] + "."
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="example:\n" + textwrap.indent(example.strip(), "  "),
    )
    parser.set_defaults(run=run, known=parser, command=name)
    return parser


def _overrides(args: argparse.Namespace, rest: list[str]) -> list[str]:
    """What is left of the command line as "--config.key=value"; anything else is an error."""
    overrides, words = [], iter(rest)
    for word in words:
        if not word.startswith("--config.") or not hasattr(args, "config"):
            options = [option for action in args.known._actions for option in action.option_strings]
            args.known.error(f"unknown argument {word!r}.{nearest(word.partition('=')[0], options)}")
        overrides.append(word if "=" in word else f"{word}={next(words, '')}")
    return overrides


def _explained(error: Exception) -> bool:
    """Whether the error's own message is enough: the file system's, or raised by this library on purpose."""
    if isinstance(error, OSError) or type(error).__module__.startswith("mmjax"):
        return True
    if not isinstance(error, (ValueError, IndexError, FloatingPointError, RuntimeError)):
        return False
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").startswith("mmjax")


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


# train


def _add_train(commands) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "train a model by a config, stage after stage; the same command again resumes",
        """
mmjax train --config llava_1_5:tiny --workdir runs/tiny \\
    --config.stages.pretrain.data.path=captions.json --config.stages.finetune.data.path=chats.json
--config.KEY=VALUE changes any value of the config; --print-config shows them all.
""",
    )
    parser.add_argument(
        "--config", required=True, help="NAME:SIZE of `mmjax systems`, or a .py or .json file"
    )
    parser.add_argument("--workdir", required=True, type=Path, help="checkpoints, metrics, the trained model")
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and stop")
    group = parser.add_argument_group("several processes (TPU pods and SLURM need --distributed alone)")
    group.add_argument("--distributed", action="store_true", help="join the other processes of this run")
    group.add_argument("--coordinator", help="host:port of process 0")
    group.add_argument("--num-processes", type=int)
    group.add_argument("--process-id", type=int)


def _train(args) -> None:
    from mmjax.configuration import load_config, to_plain

    config = load_config(args.config, args.overrides)
    if args.print_config:
        import json

        print(json.dumps(to_plain(config), indent=2))
        return
    from mmjax.distributed.processes import fail_fast, initialize
    from mmjax.recipes.train import train_from_config

    if args.distributed or args.coordinator:
        initialize(args.coordinator, args.num_processes, args.process_id)
    with fail_fast():
        train_from_config(config, args.workdir)


# generate, chat


def _add_model(parser) -> None:
    parser.add_argument("model", metavar="CKPT", help="a transformers or mmjax directory, or a .gguf file")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32"
    )


def _load(args):
    """The model, which must be one that speaks."""
    import mmjax

    model = mmjax.from_pretrained(args.model, dtype=args.dtype)
    if not isinstance(model, mmjax.Model):
        raise ConfigError(f"{args.model} holds an encoder alone, no language model")
    model.need_processor(f"`mmjax {args.command}`")
    return model


def _add_generate(commands) -> None:
    parser = _command(
        commands,
        "generate",
        _generate,
        "answer every record of a file; the same command again goes on behind the last answer",
        """
mmjax generate demo_out/model -i questions.jsonl -o answers.jsonl --max-new-tokens 32
mmjax generate Janus-Pro-1B -i prompts.jsonl -o drawn.jsonl --generation-mode image
What a model draws is written to a folder beside the answers, drawn/ here, and its lines name the files.
""",
    )
    _add_model(parser)
    parser.add_argument("-i", "--input", required=True, type=Path, help=".jsonl or .json of conversations")
    parser.add_argument("-o", "--output", required=True, type=Path, help=".jsonl, a line for each record")
    parser.add_argument("--batch-size", type=int, default=8, metavar="B", help="rows of a batch; default: 8")
    parser.add_argument("--image-root", metavar="DIR", help="where image paths start; default: beside -i")
    add_sampling(parser)
    add_drawing(parser)


def _generate(args) -> None:
    from mmjax.infer.batch import run_file

    if not args.input.is_file():
        raise FileNotFoundError(f"{args.input}: no such file")
    model = _load(args)
    options, making = read_generation(args, model)
    report = run_file(
        model.module,
        model.params,
        model.processor,
        args.input,
        args.output,
        options,
        model.processor.plan,
        args.batch_size,
        model.programs,
        image_root=args.image_root,
        making=making,
        makers=model.makers,
    )
    print(f"{args.output}: {report}")


def _add_chat(commands) -> None:
    parser = _command(
        commands,
        "chat",
        _chat,
        "talk with a model; with -m, one answer",
        """
mmjax chat demo_out/model
mmjax chat demo_out/model --image cat.png -m "What is this?"
mmjax chat Janus-Pro-1B --generation-mode image -m "a red cat"
What it draws is saved as reply_000_0.png and so on; in a conversation, /draw TEXT asks for an image.
""",
    )
    _add_model(parser)
    parser.add_argument("-m", "--message", help="say this, print the answer and leave")
    parser.add_argument("--image", action="append", default=[], help="before the message (repeatable)")
    parser.add_argument("--system", help="a system message")
    parser.add_argument(
        "--media-dir", type=Path, default=Path("."), metavar="DIR", help="for what it draws; default: ."
    )
    add_sampling(parser)
    add_drawing(parser)


def _chat(args) -> None:
    from mmjax.infer.chat import ChatSession, interactive, save_media

    if args.image and args.message is None:
        raise ConfigError("--image needs -m MESSAGE; in a conversation, type /image PATH")
    model = _load(args)
    codes, drawing, more = model.config.codes, None, {}
    if codes is not None and args.message is None:
        _, drawing = read_generation(args, model, generation_mode="image")
        if codes.begin is None and args.generation_mode is None:
            # It begins no image by itself: what is said of images is said of those of /draw.
            more = dict.fromkeys(("guidance_scale", "image_grid", "negative_prompt"))
    options, making = read_generation(args, model, **more)
    session = ChatSession(
        model.module,
        model.params,
        model.processor,
        options,
        model.programs,
        system=args.system,
        making=making,
        makers=model.makers,
        drawing=drawing,
    )
    if args.message is None:
        interactive(session, directory=args.media_dir)
    else:
        reply = session.reply(args.message, args.image, lambda piece: print(piece, end="", flush=True))
        print()
        for line in save_media(reply, args.media_dir):
            print(line)


# convert, export


def _add_convert(commands) -> None:
    parser = _command(
        commands,
        "convert",
        _convert,
        "turn any checkpoint that can be read into an mmjax directory",
        "mmjax convert /models/llava-1.5-7b-hf llava_mmjax --dtype bfloat16",
    )
    _add_model(parser)
    parser.add_argument("output", metavar="DST", type=Path, help="the directory to write")


def _convert(args) -> None:
    import mmjax

    mmjax.from_pretrained(args.model, dtype=args.dtype).save_pretrained(args.output, format="mmjax")
    print(f"wrote {args.output}")


def _add_export(commands) -> None:
    parser = _command(
        commands,
        "export",
        _export,
        "write a model for another framework",
        "mmjax export runs/llava/model --to huggingface -o llava_hf --verify",
    )
    _add_model(parser)
    parser.add_argument("--to", required=True, choices=("huggingface",), help="what transformers loads")
    parser.add_argument("-o", "--output", required=True, type=Path, help="the directory to write")
    parser.add_argument("--verify", action="store_true", help="read it back and compare every parameter")


def _export(args) -> None:
    import mmjax

    model = mmjax.from_pretrained(args.model, dtype=args.dtype)
    model.save_pretrained(args.output, format=args.to)
    print(f"wrote {args.output}")
    if args.verify:
        import jax
        import numpy as np

        back = mmjax.from_pretrained(args.output, dtype=args.dtype)
        ours, theirs = (dict(jax.tree_util.tree_leaves_with_path(m.params)) for m in (model, back))
        names = [
            jax.tree_util.keystr(path, simple=True, separator="/") for path in ours.keys() ^ theirs.keys()
        ]
        names += [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path in ours.keys() & theirs.keys()
            if not np.array_equal(ours[path], theirs[path])
        ]
        if names:
            raise ConfigError(f"{args.output} reads back different in {', '.join(sorted(names))}")
        print(f"verified: {len(ours)} parameters read back equal")


# data


def _add_data(commands) -> None:
    parser = _command(
        commands,
        "data",
        _data,
        "show what a record becomes: its tokens, its media, what the loss is taken on",
        "mmjax data demo_out/model chats.jsonl --record 3",
    )
    _add_model(parser)
    parser.add_argument("source", metavar="FILE", help=".jsonl, .json, .array_record or tfds:name/split")
    parser.add_argument("--record", type=int, action="append", help="number from 0 (repeatable); default: 0")
    parser.add_argument("--image-root", metavar="DIR", help="where image paths start; default: beside FILE")


def _data(args) -> None:
    from mmjax.data.sources import open_source
    from mmjax.recipes.inspect_data import inspect_record

    source = open_source(args.source)
    model = _load(args)
    root = args.image_root or os.path.dirname(os.path.abspath(args.source))
    for record in args.record or [0]:
        print(inspect_record(source, record, model.processor, root))


# systems, demo


def _add_systems(commands) -> None:
    parser = _command(
        commands,
        "systems",
        _systems,
        "list the systems that have a config; of one, count parameters, tokens and FLOPs",
        """
mmjax systems
mmjax systems llava_1_5:13b
mmjax systems qwen2_vl --json
""",
    )
    parser.add_argument("name", nargs="?", metavar="NAME[:SIZE]", help="count this one, or this size of it")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _systems(args) -> None:
    import json

    import configs

    shown = configs.SYSTEMS
    if args.name is not None:
        from mmjax.recipes.describe import describe_system

        name, _, size = args.name.partition(":")
        if name not in shown:
            known = ", ".join(shown)
            raise ConfigError(f"no system is named {name!r}.{nearest(name, shown)} There are: {known}")
        shown = {name: {**shown[name], "counted": describe_system(name, size or None)}}
    if args.json:
        print(json.dumps(shown, indent=2))
        return
    for name, system in shown.items():
        print(f"{name}  {system['title']}: {' + '.join(system['inputs'])} -> {' + '.join(system['outputs'])}")
        sizes = " ".join(f"{name}:{size}" for size in system["sizes"])
        for key, value in [*system["parts"].items(), ("sizes", sizes), *((k, system[k]) for k in ("run", "verified"))]:
            print(f"    {key:<40}{value}")
        for size, counts in system.get("counted", {}).items():
            print(f"  {name}:{size}")
            for key, value in counts_in_words(counts):
                print(f"    {key:<40}{value}")


def counts_in_words(counts: dict) -> list[tuple[str, str]]:
    """What `mmjax.recipes.describe` counted, as rows of a name and a value."""
    if not counts:
        return [("counts", "none: the parts are read from checkpoints when it runs")]
    rows = [(f"{part}, parameters", f"{number:,}") for part, number in counts["parameters"].items()]
    for port, words in counts["items"].items():
        tokens, flops = counts["tokens"][port], counts["item_flops"][port]
        rows.append((f"{port}, tokens", f"{tokens} of one item, {words}, for {flops:.4g} FLOPs"))
    rows.append(("LLM, FLOPs a token", f"{counts['token_flops']:.4g} forward, attention's products aside"))
    if "read_flops" in counts:
        rows.append(("of one that is read", f"{counts['read_flops']:.4g}"))
    return rows


def _add_demo(commands) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "teach a small language model to see, on this machine, in minutes",
        "mmjax demo --workdir demo_out",
    )
    parser.add_argument("--workdir", type=Path, default=Path("demo_out"), help="default: demo_out")
    parser.add_argument("--short", action="store_true", help="a few steps of everything, checked")


def _demo(args) -> int | None:
    from mmjax.recipes.demo.__main__ import main as demo

    return demo(["--workdir", str(args.workdir), *(["--short"] if args.short else [])])


if __name__ == "__main__":
    sys.exit(main())
