"""The command line: help that is quick, errors that are one line and name the nearest right word, and every
command on a tiny model that `mmjax train` made."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import configs
from mmjax import cli

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("train", "generate", "chat", "convert", "export", "systems", "data", "demo")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from mmjax.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'orbax', 'grain', 'tokenizers', 'PIL', 'rich', 'ml_collections'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "HEAVY []" in done.stdout
    for name in COMMANDS:
        assert f"\n    {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  mmjax {name}" in text


def test_without_a_command_it_shows_help(capsys):
    assert cli.main([]) == 0
    assert "commands:" in capsys.readouterr().out


def fails(arguments, capsys):
    """stderr of a command that must end with 2 and one line."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("mmjax: error: ") and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["trian"], ["'trian'", '"train"', "export"]),
        (["chat", "m", "--tmperature", "1"], ["'--tmperature'", '"--temperature"', "mmjax chat --help"]),
        (["systems", "--config.a=1"], ["'--config.a=1'"]),
        (["systems", "llava_15"], ["'llava_15'", '"llava_1_5"']),
        (["systems", "llava:9b"], ["'9b'", "7b", "13b"]),
        (["train", "--config", "llava_1_5:7b"], ["--workdir"]),
        (["train", "--config", "llava15:7b", "--workdir", "w"], ["'llava15'", '"llava_1_5"']),
        (["train", "--config", "demo", "--workdir", "w"], ["program of its own", "mmjax demo --workdir"]),
        (["train", "--config", "gone.py", "--workdir", "w"], ["'gone.py' does not exist"]),
        (["train", "--config", "llava_1_5:8b", "--workdir", "w"], ["'8b'", '"7b"', "13b"]),
        (
            ["train", "--config", "llava_1_5:7b", "--workdir", "w", "--config.stages.pretrain.step=4"],
            ["config.stages.pretrain", "'step'", '"steps"'],
        ),
        (
            ["train", "--config", "llava_1_5:7b", "--workdir", "w", "--config.mesh.data", "two"],
            ["config.mesh.data", "an integer", "'two'"],
        ),
        (
            ["train", "--config", "llava_1_5:tiny", "--workdir", "w"],
            ["config.stages.pretrain.data.path is not set", "--config.stages.pretrain.data.path="],
        ),
        (["export", "m", "--to", "onx", "-o", "d"], ["--to", "'onx'", "huggingface"]),
        (["generate", "m", "-i", "gone.jsonl", "-o", "o"], ["gone.jsonl"]),
        (["chat", "m", "--image", "a.png"], ["-m MESSAGE", "/image PATH"]),
        (["convert", "/no/such/model", "d"], ["/no/such/model"]),
        (["data", "m", "gone.jsonl"], ["gone.jsonl"]),
    ],
)
def test_errors_are_one_line_that_says_what_would_be_right(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = fails(arguments, capsys)
    for word in words:
        assert word in error
    assert not list(tmp_path.iterdir()), "a command that failed left files behind"


def test_traceback_on_request_and_for_faults_of_our_own(monkeypatch):
    arguments = ["train", "--config", "llava15", "--workdir", "w"]
    monkeypatch.setenv("MMJAX_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="llava15"):
        cli.main(arguments)
    monkeypatch.setenv("MMJAX_TRACEBACK", "0")
    monkeypatch.setattr("mmjax.configuration.load_config", lambda *_: int("no number"))
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(arguments)


def test_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmjax.configuration.load_config", interrupted)
    assert cli.main(["train", "--config", "llava_1_5", "--workdir", "w"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_systems_as_text_and_as_json(capsys):
    assert cli.main(["systems"]) == 0
    text = capsys.readouterr().out
    assert "llava_1_5:13b" in text and "modality encoder" in text and "verified" in text
    assert cli.main(["systems", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == configs.SYSTEMS.keys()


def test_one_system_is_counted(capsys):
    assert cli.main(["systems", "llava_1_5:7b"]) == 0
    text = capsys.readouterr().out
    for words in ("7,063,427,072", "576 of one item, image of 336 x 336 pixels", "encoders/image, parameters"):
        assert words in text
    assert cli.main(["systems", "blip_2:flan_t5_xl", "--json"]) == 0
    (counts,) = json.loads(capsys.readouterr().out)["blip_2"]["counted"].values()
    assert counts["tokens"] == {"image": 32} and counts["parameters"]["total"] == sum(
        number for part, number in counts["parameters"].items() if part != "total"
    )


def test_print_config_shows_overrides_and_trains_nothing(capsys, tmp_path):
    command = ["train", "--config", "llava_1_5:13b", "--workdir", str(tmp_path / "run"), "--print-config"]
    assert cli.main([*command, "--config.stages.finetune.steps=77", "--config.mesh.fsdp", "-1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["stages"]["finetune"]["steps"] == 77 and shown["mesh"]["fsdp"] == -1
    assert not (tmp_path / "run").exists()


# A tiny model, trained once and then used by every other command.


def write_data(folder):
    """Nine images of one colour with captions, as LLaVA JSON and as JSONL of messages."""
    rng, llava, lines = np.random.default_rng(0), [], []
    for index in range(9):
        colour = rng.integers(0, 255, 3)
        pixels = np.broadcast_to(colour.astype(np.uint8), (20 + index, 31, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index}.png")
        question, answer = "<image>\nWhich red?", f"red {colour[0]}"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        llava.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
        parts = [{"type": "image", "path": f"{index}.png"}, {"type": "text", "text": "Which red?"}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"id": index, "messages": messages}))
    (folder / "captions.json").write_text(json.dumps(llava))
    (folder / "chats.jsonl").write_text("\n".join(lines))


def train_command(folder):
    return [
        "train",
        "--config=llava_1_5:tiny",
        f"--workdir={folder / 'run'}",
        f"--config.stages.pretrain.data.path={folder / 'captions.json'}",
        f"--config.stages.finetune.data.path={folder / 'chats.jsonl'}",
        "--config.stages.pretrain.steps=3",
        "--config.stages.finetune.steps=4",
        "--config.stages.finetune.panel_every=4",
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder)
    assert cli.main(train_command(folder)) == 0
    return folder


def test_train_writes_config_stages_and_model(trained, capsys):
    run = trained / "run"
    saved = json.loads((run / "config.json").read_text())
    assert list(saved["stages"]) == ["pretrain", "finetune"] and saved["stages"]["finetune"]["steps"] == 4
    for stage, frozen in (("pretrain", "backbone/embed"), ("finetune", "encoders/image")):
        hashes = json.loads((run / stage / "certificate.json").read_text())["frozen"]
        assert hashes[frozen]["before"] == hashes[frozen]["after"]
    assert Image.open(run / "finetune" / "panels" / "4.png").size[0] > 200
    before = (run / "finetune" / "metrics.jsonl").read_text()
    assert cli.main(train_command(trained)) == 0
    assert (run / "finetune" / "metrics.jsonl").read_text() == before, "a finished run must not train again"


def test_generate_answers_every_record_and_goes_on(trained, capsys):
    output = trained / "answers.jsonl"
    command = [
        "generate",
        str(trained / "run" / "model"),
        "-i",
        str(trained / "chats.jsonl"),
        "-o",
        str(output),
    ]
    command += ["--max-new-tokens", "5", "--batch-size", "4"]
    assert cli.main(command) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(9))
    assert all(1 <= line["num_tokens"] <= 5 and line["reference"].startswith("red ") for line in lines)
    assert "9 records (0 with an error) in 3 batches of 1 buckets" in capsys.readouterr().out
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.index(b"\n", len(whole) // 2) + 1])
    assert cli.main(command) == 0
    assert output.read_bytes() == whole


def test_chat_with_one_message(trained, capsys):
    model = str(trained / "run" / "model")
    command = ["chat", model, "--image", str(trained / "3.png"), "-m", "Which red?", "--max-new-tokens", "4"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.endswith("\n")
    assert "no such image file" in fails([*command, "--image", trained / "gone.png"], capsys)
    assert "--temperature" in fails([*command, "--temperature", "-1"], capsys)


def test_data_shows_tokens_media_and_loss(trained, capsys):
    command = ["data", str(trained / "run" / "model"), str(trained / "captions.json"), "--record", "2"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "image 0: 31 x 22 pixels -> array 28 x 28 x 3 -> 4 tokens" in text
    assert "[image 0: 4 tokens]" in text
    (loss,) = [line for line in text.splitlines() if " LOSS " in line]
    assert "red" in loss and "</s>" in loss
    assert "there is no record 9" in fails([*command, "--record", "9"], capsys)


def test_convert_and_export_keep_every_parameter(trained, capsys):
    model = str(trained / "run" / "model")
    assert cli.main(["convert", model, str(trained / "copy")]) == 0
    assert (
        cli.main(
            ["export", str(trained / "copy"), "--to", "huggingface", "-o", str(trained / "hf"), "--verify"]
        )
        == 0
    )
    assert "read back equal" in capsys.readouterr().out
    config = json.loads((trained / "hf" / "config.json").read_text())
    assert config["model_type"] == "llava"
    command = ["chat", "-m", "Which red?", "--image", str(trained / "3.png"), "--max-new-tokens", "4"]
    answers = []
    for name in ("copy", "hf"):
        assert cli.main([*command, str(trained / name)]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_the_module_runs_as_a_program(tmp_path):
    command = [sys.executable, "-m", "mmjax.cli", "train", "--config", "llava_1_5:9b", "--workdir", "w"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("mmjax: error: ") and done.stderr.count("\n") == 1


DOCUMENTS = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs").glob("*.py")),
    ROOT / "README.md",
]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.exists()], ids=lambda path: path.name)
def test_commands_in_the_documentation_parse(path):
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^\s*(mmjax [a-z]+ .*)$", text, re.M):
        arguments = shlex.split(line.split("  #")[0])[1:]
        parser = cli.build_parser()
        args, rest = parser.parse_known_args(arguments)
        assert cli._overrides(args, rest) is not None
