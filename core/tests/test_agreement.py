"""vitutor agreement: on which images models agree, which few are shown, and what the figure says of them."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from core.tests.train_samples import run
from vitutor_core.analysis.agreement import agreement, of_image, of_kinds
from vitutor_core.cli.entry import run as run_command
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.data import keyed
from vitutor_core.data.sources.digits import digits_source
from vitutor_core.evaluate.labelled import evaluate_file
from vitutor_core.graph.stages import read_graph
from vitutor_core.models.weights import load_model, save_model
from vitutor_core.report.analyses import analysis_pictures

# Three models, five images, three classes; image by image all are right, none is, a alone, b alone, a and c.
TARGETS = torch.tensor([0, 1, 2, 2, 0])
NAMED = {"a": [0, 0, 2, 0, 0], "b": [0, 2, 0, 2, 1], "c": [0, 0, 1, 1, 0]}
SAID = torch.stack([torch.nn.functional.one_hot(torch.tensor(named), 3) * 0.7 + 0.1 for named in NAMED.values()])


def test_agreement_by_hand():
    found = agreement(list(NAMED), SAID, TARGETS)
    assert found["images"] == 5
    assert found["top1"] == pytest.approx({"a": 60, "b": 40, "c": 40})
    # a and b name one class for image 0 alone, a and c for 0, 1 and 4, b and c for 0.
    assert found["same"] == [pytest.approx(row) for row in ([100, 20, 60], [20, 100, 20], [60, 20, 100])]
    assert (found["all_right"], found["none_right"]) == pytest.approx((20, 20))
    assert found["only_right"] == pytest.approx({"a": 20, "b": 20, "c": 0})
    kinds = {kind.name: kind.images.tolist() for kind in of_kinds(list(NAMED), SAID, TARGETS)}
    assert kinds == {"all right": [0], "only a": [2], "only b": [3], "only c": []}


def test_the_own_class_comes_first_then_those_that_a_model_is_surest_of():
    said = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.1, 0.6]])
    found = of_image(["a", "b"], said, ["p", "q", "r", "s"], target=2, top=3)
    assert {label: list(own) for label, own in found.items()} == {"a": ["r", "s", "p"], "b": ["r", "s", "p"]}
    assert found["b"] == pytest.approx({"r": 0.1, "s": 0.6, "p": 0.1})
    assert list(of_image(["a", "b"], said, ["p", "q", "r", "s"], target=None, top=9)["a"]) == ["s", "p", "q", "r"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in (("one", ()), ("other", ("student.kwargs.patch_size=4", "seed=1"))):
        run(folder / name, *settings)
    # The same model with its classes in another order.
    model, card = load_model(folder / "one" / "student.safetensors")
    turned = card.model_copy(update={"class_names": (*card.class_names[1:], card.class_names[0])})
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight.roll(-1, 0))
        model.head.bias.copy_(model.head.bias.roll(-1, 0))
    save_model(folder / "turned.safetensors", model, turned)
    save_model(folder / "few.safetensors", model, card.model_copy(update={"class_names": tuple("abcdefghij")}))
    return folder


@pytest.fixture
def call(capsys):
    def called(*arguments):
        with pytest.raises(SystemExit) as caught:
            run_command(vitutor, ["agreement", *map(str, arguments)])
        return caught.value.code or 0, *capsys.readouterr()

    return called


def test_models_are_compared_on_the_evaluation_split(runs, call, tmp_path):
    out = tmp_path / "analyses" / "one"
    code, output, _ = call(runs / "one", runs / "other", "--beside", runs / "turned.safetensors", "--out", out)
    assert (code, output.strip()) == (0, str(out / "agreement.svg"))
    found = json.loads((out / "analysis.json").read_text())
    first, second, third = found["models"]
    assert (first, second, third) == ("test, seed 0", "test, seed 1", "turned")
    everything = found["all"]
    assert everything["images"] == len(digits_source().evaluation.labels) == 896
    for label, folder in ((first, "one"), (second, "other")):
        measured = evaluate_file(runs / folder / "student.safetensors", source="digits", split=None)
        assert everything["top1"][label] == pytest.approx(measured.metrics["top1"])
    # One model in two orders of its classes says the same.
    assert everything["same"][0][2] == 100
    assert everything["only_right"][third] == 0
    kinds = [one["kind"] for one in found["shown"]]
    assert kinds == ["all right", f"only {first}", f"only {second}"]
    for one in found["shown"]:
        named = [max(said, key=said.get) == one["class"] for said in one["probabilities"].values()]
        assert named[:2] == [one["kind"] in {"all right", f"only {label}"} for label in (first, second)]
        assert {next(iter(said)) for said in one["probabilities"].values()} == {one["class"]}
        assert one["probabilities"][first] == pytest.approx(one["probabilities"][third], abs=1e-6)
    judged = found["judged"]
    assert [one["share"] for one in found["shown"]] == [judged["all_right"], *judged["only_right"].values()]
    (picture,) = analysis_pictures(out.parent, tmp_path / "report")
    drawn = picture.path.read_text()
    assert all(f"only {label}" in drawn for label in (first, second))
    assert drawn.count("<image") == 3


def test_where_there_is_nothing_to_show_it_says_what_was_found(runs, call, tmp_path):
    model, card = load_model(runs / "one" / "student.safetensors")
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.nn.functional.one_hot(torch.tensor(0), 10))
    for name in ("a", "b"):
        save_model(tmp_path / f"{name}.safetensors", model, card)
    labels = digits_source().evaluation.labels
    seed = next(seed for seed in range(100) if 0 not in labels[keyed.permutation(len(labels), seed)[:5]])
    models = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    out = tmp_path / "analyses" / "nothing"
    code, output, _ = call(*models, "--source", "digits", "--images", 5, "--seed", seed, "--out", out)
    assert code == 0
    assert output == (
        "nothing to draw: on none of 5 images are all models right, or one alone (a is right on 0.0 %, b is right on "
        f"0.0 %, none of them on 100.0 %); the numbers are in {out / 'analysis.json'}\n"
    )
    found = json.loads((out / "analysis.json").read_text())
    assert (found["shown"], found["pictures"], found["all"]["same"]) == ([], [], [[100, 100], [100, 100]])
    assert analysis_pictures(out.parent, tmp_path / "report") == []


def test_given_images_are_shown_as_they_are_named(runs, call, tmp_path):
    for name, grey in (("dark", 20), ("light", 220)):
        Image.new("RGB", (20, 30), (grey,) * 3).save(tmp_path / f"{name}.png")
    options = ("--image", tmp_path / "*.png", "--top", 2, "--out", tmp_path / "out")
    assert call(runs / "one", runs / "other", *options)[0] == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [(one["kind"], one["class"], one["share"]) for one in found["shown"]] == [
        ("dark.png", None, None),
        ("light.png", None, None),
    ]
    assert [len(said) for one in found["shown"] for said in one["probabilities"].values()] == [2] * 4


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (("one",), "give two models or more"),
        (
            ("one", "few.safetensors"),
            "only one of few and test, seed 0 knows the class '0'; compare models of one class",
        ),
        (("turned.safetensors", "few.safetensors"), "no metrics.json says which images it knows; give --source"),
    ],
)
def test_mistakes_are_one_line(models, message, runs, call, tmp_path):
    code, _, errors = call(*(runs / name for name in models), "--out", tmp_path / "out")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert message in errors


def test_a_recipe_names_what_is_compared():
    graph = read_graph("digits").papers["coadvise"]
    (stage,) = [stage for stage in graph.stages if stage.name == "coadvise_agreement"]
    assert (stage.rows, stage.teachers) == (("none", "cnn_inn"), ("cnn", "inn"))
    teachers, runs = "results/teachers", "results/runs/coadvise"
    models = f"{teachers}/cnn {teachers}/inn --beside {runs}/none --beside {runs}/cnn_inn"
    plan = "results/plan/stages/coadvise_agreement-cnn_inn.json"
    assert stage.command.startswith(f"vitutor agreement {models} --plan {plan} ")
    assert stage.outs == ("analyses/coadvise/agreement-cnn_inn",)
