"""The contract of methods, and that a wrapper forwards the whole of it."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from vitutor_core.train import optim
from vitutor_core.train.method import Clock, Method, StepOutput, Traits
from vitutor_core.train.wrap import MethodWrapper

# `build` makes a method from a config; what is wrapped is built already. Names of parts get a prefix (below).
CONTRACT = sorted({name for name in {**vars(Method), **Method.__annotations__} if not name.startswith("_")} - {"build"})


class Plain(Method):
    def __init__(self):
        super().__init__()
        self.student = nn.Linear(2, 2)

    def forward(self, batch, clock):
        loss = self.student(batch).square().mean()
        return StepOutput(loss, {"first": loss, "second": 2 * loss}, {"part": loss})


def test_the_walk_sees_the_contract():
    assert {"student", "traits", "forward", "on_epoch", "update_rule", "report", "teachers"} <= set(CONTRACT)
    assert inspect.isabstract(Method)


@pytest.mark.parametrize("name", CONTRACT)
def test_a_wrapper_forwards_every_member(name):
    answer = Traits(classifies=False) if name == "traits" else nn.Identity() if name == "student" else {"answer"}
    given = []

    def member(self, *arguments):
        given.append(arguments)
        return answer

    value = answer if name in {"student", "traits"} else member
    base = Plain if name not in Plain.__dict__ or name == "forward" else Method
    method = type("Other", (base,), {name: value})() if name != "student" else Plain()
    if name == "student":
        method.student = answer
    found = getattr(MethodWrapper(method), name)
    if not callable(found) or name == "student":
        assert found is answer
        return
    arguments = [object() for _ in list(inspect.signature(getattr(Method, name)).parameters)[1:]]
    if name == "update_rule":
        arguments = [()]
    result = found(*arguments)
    # The names of parameters are the wrapper's, so they begin with that of its part.
    assert result == ({"method.answer"} if name == "no_weight_decay" else answer)
    assert given == [tuple(arguments)]


class Scaled(MethodWrapper):
    """Adds a term with a parameter of its own."""

    def __init__(self, method):
        super().__init__(method)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch, clock):
        return super().forward(batch, clock).with_term(self.scale * self.student.weight.sum(), added=self.scale)


def test_a_term_joins_the_loss_and_the_students_objective():
    method, batch = Plain(), torch.ones(3, 2)
    alone, both = method(batch, Clock(0, 1, 1)), Scaled(method)(batch, Clock(0, 1, 1))
    term = method.student.weight.sum()
    torch.testing.assert_close(both.loss, alone.loss + term)
    assert list(both.losses) == ["first", "second"]
    torch.testing.assert_close(both.losses["first"], alone.losses["first"] + term)
    assert torch.equal(both.losses["second"], alone.losses["second"])
    assert both.parts.keys() == {"part", "added"}


def test_the_update_rule_is_told_of_the_parameters_of_all_wrappers():
    told = []
    method = Plain()
    method.update_rule = told.append
    inner = Scaled(method)
    outer = Scaled(inner)
    outer.update_rule()
    assert [id(parameter) for parameter in told[0]] == [id(inner.scale), id(outer.scale)]


def test_a_wrapped_method_is_optimised_as_it_says():
    from core.tests.train_samples import tiny_config

    method = Plain()
    method.traits = Traits(decays_all=True)
    (group,) = optim.build_optimizer(Scaled(method), tiny_config("optim.weight_decay=0.1").optim, 1).param_groups
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == 3
