"""Sources against json.loads on the whole file, round trips of the record format, and damaged files."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mmjax.data.sources import (
    ArrayRecordSource,
    JsonlSource,
    ListSource,
    SourceError,
    TfdsSource,
    decode_record,
    encode_record,
    open_source,
    write_array_record,
)

RECORDS = [
    {"id": 1, "text": 'brackets ]}[{ and "quotes" \\ and \n lines', "nested": {"a": [1, [2, {"b": None}]]}},
    {"id": 2, "text": "汉字 é", "list": [{"x": 1}, {"y": "}"}]},
    {},
    {"id": 4, "text": "\\"},
]


def test_jsonl_reads_any_record_and_skips_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    text = "\n\n" + "\r\n".join(lines[:2]) + "\n   \n" + "\n".join(lines[2:])
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = open_source(path)
    assert len(source) == 4
    assert [source[i] for i in (3, 0, 2, 1)] == [RECORDS[i] for i in (3, 0, 2, 1)]
    assert source.name(2) == f"{path} line 6"
    copy = pickle.loads(pickle.dumps(source))
    assert copy[1] == RECORDS[1]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_array_is_indexed_without_parsing(tmp_path, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS, indent=indent, ensure_ascii=indent is None))
    source = open_source(str(path))
    assert [source[i] for i in range(len(source))] == json.loads(path.read_text())
    assert source.name(1) == f"{path} record 1"


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"a": 1}, {"b": ', "does not end"),
        ('[{"a": 1}', r"does not end \(after 1 whole records\)"),
        ('{"a": 1}', "expected one array"),
        ('[{"a": 1}] [', "expected one array"),
        ('[[1], {"a": 1}]', "record 0 at byte 1 is not an object"),
        ('[{"a": 1}, "text"]', "stray text after record 0"),
        ("[]", "no record"),
        ("", "empty"),
    ],
)
def test_bad_json_arrays(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=message):
        JsonlSource(path)


def test_bad_lines_are_named_when_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 1\n[1]\n{"a": 2}\n')
    source = JsonlSource(path)
    assert source[3] == {"a": 2}
    with pytest.raises(SourceError, match=r"a\.jsonl line 3: not valid JSON"):
        source[1]
    with pytest.raises(SourceError, match=r"a\.jsonl line 4: expected a JSON object, got list"):
        source[2]
    path.write_text("\n \n")
    with pytest.raises(SourceError, match="no record"):
        JsonlSource(path)


@pytest.mark.parametrize(
    "name", ["missing.jsonl", "missing.json", "missing.array_record", "missing-*.array_record*"]
)
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="missing"):
        open_source(tmp_path / name)


def test_a_spec_that_means_nothing(tmp_path):
    with pytest.raises(SourceError, match=r"data\.parquet: expected \.jsonl"):
        open_source("data.parquet")
    with pytest.raises(SourceError, match="tfds:name/split"):
        open_source("tfds:coco")
    with pytest.raises(SourceError, match="int"):
        open_source(3)


def test_lists_are_sources():
    source = open_source(RECORDS)
    assert len(source) == 4 and source[1] == RECORDS[1] and source.name(1) == "record 1"
    assert open_source(source) is source
    assert ListSource(RECORDS, "emoji").name(0) == "emoji 0"


def rich_record(rng, i):
    return {
        "id": i,
        "image": rng.bytes(rng.integers(0, 300)),
        "parts": [{"text": "é", "raw": b""}, None, True, 1.5],
        "features": rng.standard_normal((i % 3, 4)).astype(np.float32),
        "mask": np.asarray([True, False])[:: -1 if i % 2 else 1],
        "count": np.int16(7),
    }


def test_records_survive_encoding():
    rng = np.random.default_rng(0)
    for i in range(5):
        record = rich_record(rng, i)
        back = decode_record(encode_record(record))
        assert list(back) == list(record)
        assert back["image"] == record["image"] and back["parts"] == record["parts"] and back["count"] == 7
        for key in ("features", "mask"):
            assert back[key].dtype == record[key].dtype
            np.testing.assert_array_equal(back[key], record[key])
    big_endian = np.arange(3, dtype=">i4")
    assert decode_record(encode_record({"a": big_endian}))["a"].tolist() == [0, 1, 2]


def test_what_cannot_be_stored_is_named():
    with pytest.raises(SourceError, match=r"record\.a\[1\].*set"):
        encode_record({"a": [1, {2}]})
    with pytest.raises(SourceError, match=r"record\.a: key '\$bytes'"):
        encode_record({"a": {"$bytes": 0}})
    with pytest.raises(SourceError, match="ndarray"):
        encode_record({"a": np.array([object()])})


def test_damaged_records_raise_and_nothing_else():
    data = encode_record({"a": b"12345", "b": np.arange(4), "c": "text"})
    rng = np.random.default_rng(1)
    for cut in range(len(data)):
        with pytest.raises(SourceError):
            decode_record(data[:cut])
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            decode_record(bytes(changed))
        except SourceError:
            continue


def test_array_record_files(tmp_path):
    rng = np.random.default_rng(0)
    records = [rich_record(rng, i) for i in range(7)]
    for shard, part in enumerate((records[:3], records[3:])):
        assert write_array_record(tmp_path / "deep" / f"a.array_record-0000{shard}-of-00002", part) == len(
            part
        )
    source = open_source(tmp_path / "deep" / "a.array_record-*")
    assert len(source) == 7
    assert [source[i]["image"] for i in range(7)] == [record["image"] for record in records]
    assert source.name(2).endswith("a.array_record-00000-of-00002 record 2")
    assert source.name(5).endswith("a.array_record-00001-of-00002 record 2")
    assert pickle.loads(pickle.dumps(source))[6]["id"] == 6


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(SourceError):
        write_array_record(tmp_path / "a.array_record", [{"a": 1}, {"a": {1}}])
    assert list(tmp_path.iterdir()) == []


def test_damaged_array_record_files_are_named(tmp_path):
    path = tmp_path / "a.arrayrecord"
    rng = np.random.default_rng(0)
    write_array_record(path, [{"i": i, "blob": rng.bytes(50)} for i in range(20)])
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"hello" * 100):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"a\.arrayrecord: not a whole"):
            ArrayRecordSource(path)
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(b"not ours")
    writer.close()
    with pytest.raises(SourceError, match=r"a\.arrayrecord record 0: not a record of this format"):
        ArrayRecordSource(path)[0]


def test_tfds_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    from mmjax.data.image import open_image

    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)

    def png(image):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        buffer.seek(0)
        return buffer

    class TinyCaptions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "caption": tfds.features.Text(),
                "answers": tfds.features.Sequence(tfds.features.Text()),
                "meta": {"text": tfds.features.Text(), "image": tfds.features.Image(shape=(None, None, 3))},
                "id": np.int64,
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                meta = {"text": "t", "image": png(image)}
                answers = ["a", "b"][: i % 3]
                yield i, {"image": png(image), "caption": f"é {i}", "answers": answers, "meta": meta, "id": i}

    TinyCaptions(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = open_source("tfds:tiny_captions/train", data_dir=tmp_path)
    assert len(source) == 5
    seen = set()
    for i in range(5):
        record = source[i]
        seen.add(record["id"])
        assert type(record["id"]) is int
        assert record["caption"] == f"é {record['id']}"
        assert record["answers"] == ["a", "b"][: record["id"] % 3]
        assert isinstance(record["image"], bytes) and record["meta"]["text"] == "t"
        for data in (record["image"], record["meta"]["image"]):
            np.testing.assert_array_equal(np.asarray(open_image(data)), images[record["id"]])
    assert seen == set(range(5))
    assert pickle.loads(pickle.dumps(source))[0] == source[0]
    assert source.name(3) == "tfds:tiny_captions/train record 3"
    with pytest.raises(SourceError, match="tfds:absent_data/train.*download_and_prepare"):
        TfdsSource("absent_data", "train", tmp_path)
