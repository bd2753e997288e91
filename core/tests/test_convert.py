"""vitutor convert: what it reads, says and writes, and that hostile files end in one line without running code."""

from __future__ import annotations

import argparse
import copy
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conformance.records import made_up_card
from core.tests.published import Official, rednet, vit
from core.tests.test_weights import EVIL, Evil, write_evil
from core.tests.train_samples import same
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.models.pickled import read_checkpoint
from vitutor_core.models.weights import CONVERTED, ModelCard, create_model, load_model, save_model
from vitutor_core.report.card import card_page
from vitutor_core.schema import ModelConfig

SMALL = ("--model", "deit_tiny_patch16_224", "--set", "kwargs.embed_dim=16", "--set", "kwargs.depth=1")
SMALL = (*SMALL, "--set", "kwargs.num_heads=2")
KWARGS = {"embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def weights():
    """A small DeiT of ten classes."""
    found = Official()
    with torch.no_grad():
        vit(found, torch.zeros(1, 3, 32, 32).double(), width=16, depth=1, heads=2, classes=10)
    return dict(found)


def checkpoint(path, found):
    torch.save(found, path)
    return path


def test_a_checkpoint_becomes_a_file_that_the_other_commands_read(weights, call, tmp_path):
    file = checkpoint(tmp_path / "deit.pth", {"model": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)})
    to = tmp_path / "w.safetensors"
    code, output, errors = call(vitutor, "convert", file, "--to", to, *SMALL, "--source", "digits")
    assert (code, errors) == (0, "")
    parameters = sum(value.numel() for value in weights.values())
    assert output.splitlines() == [
        "read from model",
        "DeiT: deit_tiny_patch16_224, 10 classes, 32 px, pixels of mean 0.304 0.304 0.304, "
        "2 heads, which its shapes do not tell",
        f"{to}: {parameters:,} parameters",
    ]
    model, card = load_model(to)
    assert same(model.state_dict(), weights)
    assert (card.method, card.image_size, card.class_names) == (CONVERTED, 32, tuple("0123456789"))
    assert card.classifies


def test_there_must_be_something_to_keep_beside_the_model(call, tmp_path, weights):
    file = tmp_path / "w.safetensors"
    save_file(weights, file)
    code, _, errors = call(vitutor, "convert", file, "--to", tmp_path / "out.safetensors", *SMALL, "--source", "digits")
    assert (code, errors) == (0, "")
    options = ("--source", "digits", "--beside", tmp_path / "beside.safetensors")
    code, _, errors = call(vitutor, "convert", file, "--to", tmp_path / "other.safetensors", *SMALL, *options)
    assert (code, errors) == (2, f"error: --beside: {file} holds nothing but the model\n")
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize(
    ("wrapped", "key", "said"),
    [
        (lambda w: w, None, ()),
        (lambda w: {"model": w}, None, ("read from model",)),
        (lambda w: {"state_dict": w, "meta": {"epoch": 1}}, None, ("read from state_dict",)),
        (lambda w: {"state_dict_ema": w, "state_dict": {}}, None, ("read from state_dict_ema",)),
        (lambda w: {"model": {"state_dict": w}}, None, ("read from model / state_dict",)),
        (lambda w: {"model": {}, "model_ema": w}, "model_ema", ("read from model_ema",)),
        (lambda w: {"student": w}, "student", ("read from student",)),
    ],
)
def test_the_weights_are_found_in_what_training_scripts_store(weights, wrapped, key, said, tmp_path):
    found, notes = read_checkpoint(checkpoint(tmp_path / "w.pth", wrapped(weights)), key)
    assert notes == said
    assert same(found, weights)


def test_old_files_of_torch_are_read(weights, tmp_path):
    torch.save({"model": weights}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "w.pth")[0], weights)


def test_a_key_that_is_not_there_is_named(weights, tmp_path):
    file = checkpoint(tmp_path / "w.pth", {"model": weights, "model_ema": weights})
    with pytest.raises(ConfigError, match=r"--key model_em: .* has model, model_ema; did you mean 'model_ema'"):
        read_checkpoint(file, "model_em")


class Trap:
    """Runs code when it is unpickled, as a tensor's constructor might."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('/nonexistent/marker').touch()",)


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_hostile_files_are_one_line_and_run_nothing(kind, suffix, call, tmp_path):
    file, marker = tmp_path / f"w{suffix}", tmp_path / "marker"
    write_evil(file, kind, marker)
    code, output, errors = call(vitutor, "convert", file, "--to", tmp_path / "out.safetensors")
    assert (code, output, len(errors.splitlines())) == (4, "", 1)
    assert errors.startswith(f"error: {file}: not a ")
    assert "weights_only" not in errors  # no advice to run it
    assert not marker.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name]


def test_the_code_that_a_file_holds_is_named(tmp_path):
    torch.save({"model": {"a": Trap()}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth: not a checkpoint .*it holds code: exec"):
        read_checkpoint(tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(Trap()))  # noqa: S301  # it would run


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated_files_are_one_line(weights, share, call, tmp_path):
    whole = checkpoint(tmp_path / "whole.pth", weights).read_bytes()
    file = tmp_path / "cut.pth"
    file.write_bytes(whole[: int(share * len(whole))])
    code, _, errors = call(vitutor, "convert", file, "--to", tmp_path / "out.safetensors")
    assert (code, len(errors.splitlines())) == (4, 1)
    assert not (tmp_path / "out.safetensors").exists()


def test_an_old_file_that_declares_more_than_there_is_memory_is_refused(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    found = (tmp_path / "w.pth").read_bytes()
    place = found.index(b"K\x04", found.index(b"cpu"))  # the number of elements of the storage
    many = b"\x8a\x06" + (2**44).to_bytes(6, "little")
    (tmp_path / "w.pth").write_bytes(found[:place] + many + found[place + 2 :])
    with pytest.raises(CheckpointError, match=r"w\.pth: not a checkpoint"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_file_that_grows_when_it_is_read_is_refused(weights, tmp_path):
    small = checkpoint(tmp_path / "small.pth", {"model": {"zeros": torch.zeros(10**6)}})
    with zipfile.ZipFile(small) as stored, zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    with pytest.raises(CheckpointError, match=r"w\.pth: .*\(it is compressed, which torch's checkpoints are not\)"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_file_whose_parts_overlap_is_refused(tmp_path):
    """Its directory lists one stored part many times, so that little becomes much."""
    file = checkpoint(tmp_path / "w.pth", {"model": {"zeros": torch.zeros(1000)}})
    with zipfile.ZipFile(file, "a") as archive:
        (storage,) = (entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
        for number in range(1, 4):
            again = copy.copy(storage)
            again.filename = again.orig_filename = f"{storage.filename}{number}"
            archive.filelist.append(again)
        archive._didModify = True
    with pytest.raises(CheckpointError, match=r"w\.pth: .*\(its parts overlap"):
        read_checkpoint(file)


def test_a_file_that_holds_itself_is_refused(tmp_path):
    endless = {}
    endless["model"] = endless
    with pytest.raises(CheckpointError, match=r"w\.pth: no tensors within model / model"):
        read_checkpoint(checkpoint(tmp_path / "w.pth", endless))


def test_the_file_that_is_read_is_not_overwritten(weights, call, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file(weights, file)
    before = file.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(file)
    for to in (file, tmp_path / "link.safetensors"):
        code, _, errors = call(vitutor, "convert", file, "--to", to, *SMALL, "--source", "digits")
        assert (code, errors.count("\n")) == (2, 1)
        assert "FILE, --to: two are the same file" in errors
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([torch.zeros(1)], "holds no tensors by name"),
        ({}, "holds no tensors by name"),
        ({"model": {}}, "holds no tensors by name"),
        ({"model": {"a": torch.zeros(1), "b": 3, "c": "text"}}, "not tensors: b, c"),
        ({"a": {"b": torch.zeros(1)}}, "not tensors: a; say with --key where they are"),
        ({1: torch.zeros(1)}, "holds no tensors by name"),
        ({"a": torch.zeros(1).expand(10**9)}, "a is larger than the file"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a has values that are not finite"),
        ({"a": torch.tensor([float("inf")])}, "a has values that are not finite"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a is not a dense tensor of real numbers"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a is not a dense tensor of real numbers"),
    ],
)
def test_what_is_no_state_dict_is_refused(found, expected, call, tmp_path):
    file = checkpoint(tmp_path / "w.pth", found)
    code, _, errors = call(vitutor, "convert", file, "--to", tmp_path / "out.safetensors")
    assert (code, len(errors.splitlines())) == (4, 1)
    assert f"{file}: {expected}" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--to", "x.pth"), 2, "x.pth: safetensors are written; let it end so"),
        (("--to", "x.safetensors", "--beside", "./x.safetensors"), 2, "FILE, --to, --beside: two are the same file"),
        (("--to", "x.safetensors", "--set", "kwargs.depth=1"), 2, "--set: it changes an argument of --model"),
        (("--to", "x.safetensors", *SMALL), 2, "its head has 10 classes; name them with --source or --classes"),
        (("--to", "x.safetensors", *SMALL[:2]), 4, "weights of another model (missing: blocks.1.attn.proj.bias"),
    ],
)
def test_mistakes_are_one_line(arguments, code, expected, weights, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _, errors = call(vitutor, "convert", checkpoint(tmp_path / "w.pth", weights), *arguments)
    assert (found, len(errors.splitlines())) == (code, 1)
    assert expected in errors
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_a_student_starts_from_published_weights_and_each_change_is_said(weights, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({f"module.{name}": value for name, value in weights.items()}, file)
    config = ModelConfig(name="vit_tiny_patch16_224", kwargs=KWARGS, weights=str(file))
    with pytest.warns(UserWarning, match=f"{file}: ") as said:
        model = create_model(config, num_classes=7, image_size=48, channels=3)
    assert [str(warning.message).removeprefix(f"{file}: ") for warning in said] == [
        "prefix 'module.' removed",
        "positions resampled from 1 x 5 x 16 to 1 x 10 x 16",
        "head.weight, head.bias: left as initialised",
    ]
    assert torch.equal(model.blocks[0].mlp.fc1.weight, weights["blocks.0.mlp.fc1.weight"])
    assert model.head.out_features == 7


def test_of_a_run_only_what_was_resampled_is_said(weights, tmp_path, monkeypatch):
    """That its head is for equal classes alone is what the field says."""
    card = {"name": "deit_tiny_patch16_224", "kwargs": {**KWARGS, "img_size": 32}, "class_names": tuple("0123456789")}
    about = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_ratio": 1.0, "interpolation": "bilinear"}
    config = ModelConfig(name="deit_tiny_patch16_224", kwargs=KWARGS)
    source = create_model(config, num_classes=10, image_size=32, channels=3)
    source.load_state_dict(weights)
    save_model(tmp_path / "w.safetensors", source, ModelCard(**card, **about, method="test"))
    start = config.model_copy(update={"weights": str(tmp_path / "w.safetensors")})
    with pytest.warns(UserWarning, match="resampled") as said:
        create_model(start, num_classes=7, image_size=48, channels=3)
    assert [str(warning.message).rpartition(": ")[2] for warning in said] == [
        "positions resampled from 1 x 5 x 16 to 1 x 10 x 16"
    ]
    monkeypatch.setattr("vitutor_core.models.fit.layouts", lambda: pytest.fail("other papers were imported"))
    with warnings.catch_warnings(action="error"):
        create_model(start, num_classes=7, image_size=32, channels=3)


def test_a_student_starts_from_weights_by_their_authors_names(tmp_path):
    found = Official()
    with torch.no_grad():
        rednet(found, torch.zeros(1, 3, 64, 64).double())
    save_file(dict(found), tmp_path / "w.safetensors")
    config = ModelConfig(name="rednet26", weights=str(tmp_path / "w.safetensors"))
    model = create_model(config, num_classes=1000, image_size=64, channels=3)
    assert torch.equal(model.layer3[1].conv2.reduce.weight, found["backbone.layer3.1.conv2.conv1.conv.weight"])
    assert torch.equal(model.fc.bias, found["head.fc.bias"])


def test_a_converted_model_is_evaluated_exported_and_analysed(weights, toypaper, call, tmp_path):
    file = checkpoint(tmp_path / "deit.pth", weights)
    to = tmp_path / "w.safetensors"
    assert call(vitutor, "convert", file, "--to", to, *SMALL, "--source", "digits")[0] == 0
    code, output, _ = call(toypaper, "evaluate", to, "--source", "digits", "--out", tmp_path / "by_class")
    assert code == 0
    assert '"images": 896' in output
    assert (tmp_path / "by_class" / "classes.csv").exists()
    assert call(toypaper, "export", to, "--to", tmp_path / "exported")[0] == 0
    assert call(toypaper, "evaluate", tmp_path / "exported", "--source", "digits")[1] == output
    code, _, errors = call(toypaper, "evaluate", to)
    assert (code, errors) == (
        2,
        f"error: {to}: weights alone, not a run; give --source, the images, and leave --ema out\n",
    )
    assert call(toypaper, "export", to, "--to", tmp_path / "folder")[0] == 0
    assert same(load_file(tmp_path / "folder" / "model.safetensors"), weights)
    page = (tmp_path / "folder" / "README.md").read_text()
    assert "Published weights, 10 classes, 32 px input. Its accuracy was not measured." in page
    assert str(tmp_path) not in page
    options = ("--source", "digits", "--images", 16, "--batch", 16, "--out", tmp_path / "figures")
    assert call(vitutor, "analyze", to, *options)[0] == 0
    assert (tmp_path / "figures" / "cka.svg").exists()


@pytest.mark.parametrize(
    ("method", "line"),
    [(CONVERTED, "| weights | converted: their licence is that of their authors |"), ("toy", "| method | toy |")],
)
def test_a_page_of_a_weights_file_says_who_trained_it(method, line):
    table = card_page(None, made_up_card(method=method), "").partition("## What trained it")[2]
    assert table.splitlines()[4:] == [line]


def test_an_encoder_is_exported_and_named_as_one(weights, toypaper, call, tmp_path):
    body = {name: value for name, value in weights.items() if not name.startswith("head.")}
    to = tmp_path / "w.safetensors"
    assert call(vitutor, "convert", checkpoint(tmp_path / "w.pth", body), "--to", to, *SMALL)[0] == 0
    assert call(toypaper, "export", to, "--to", tmp_path / "folder")[0] == 0
    assert "no classes, 32 px" in (tmp_path / "folder" / "README.md").read_text()
    code, _, errors = call(toypaper, "evaluate", to, "--source", "digits")
    assert code == 2
    assert "its head is not trained" in errors


def test_the_marker_of_the_tests_works(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Evil(marker)))  # noqa: S301  # proves that the tests above could fail
    assert marker.exists()
    assert not Path("/nonexistent/marker").exists()
