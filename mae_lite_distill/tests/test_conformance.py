from __future__ import annotations

import pytest

from conformance.suite import LOADERS, MethodConformance
from mae_lite_distill.tests.mae_samples import MICRO, MICRO_DINO, MICRO_MAE, MICRO_MOCO, train_row


class TestDistilled(MethodConformance):
    package = "mae_lite_distill"
    row = "mae_distilled"
    classifies = False
    micro = (*MICRO, *MICRO_MAE, "mae.distill_layers=[2]")

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def teachers(cls, tmp_path_factory):
        """Train the row that the teacher comes from, and name its run in every config."""
        folder = tmp_path_factory.mktemp("teachers")
        train_row("mae_teacher", folder / "mae", *MICRO_MAE, "student.kwargs.num_heads=4", "train.epochs=2")
        cls.micro = (*cls.micro, f"teacher.weights={folder / 'mae'}")
        return folder


class Own(MethodConformance):
    """What depends on the method; the rest is common to all rows of the package."""

    test_kill_9_then_the_same_command = None
    test_sigterm_saves_and_exits_143 = None
    test_another_config_is_refused_with_the_difference = None
    test_a_checkpoint_of_another_method_is_refused = None
    test_a_finished_run_is_not_trained_again = None
    test_runtime_fields_may_change = None
    test_every_row_of_every_scale_is_valid_and_no_two_are_the_same = None
    test_every_student_can_be_built = None
    test_every_row_of_the_tables_can_be_made_and_every_row_is_for_something = None
    test_compare_finds_its_rows = None
    test_evaluate_in_a_fresh_process_finds_the_model = None
    test_help_takes_under_a_second = None

    @pytest.mark.parametrize("loader", list(LOADERS)[:1])
    def test_resume_is_bit_exact(self, tmp_path, teachers, monkeypatch, finished, loader):
        super().test_resume_is_bit_exact(tmp_path, teachers, monkeypatch, finished, loader)


class TestHidden(Own, TestDistilled):
    row = "mae_hidden"
    micro = (*MICRO, *MICRO_MAE, "mae.distill_layers=[2]")


class TestContrastive(Own):
    package = "mae_lite_distill"
    row = "moco"
    classifies = False
    sees_other_processes = True
    micro = (*MICRO, *MICRO_MOCO)


class TestDINO(Own):
    package = "mae_lite_distill"
    row = "dino"
    classifies = False
    sees_other_processes = True  # in the centre
    micro = (*MICRO, *MICRO_DINO)


class TestSimMIM(Own):
    package = "mae_lite_distill"
    row = "simmim"
    classifies = False
    micro = MICRO


class TestCompression(Own):
    package = "mae_lite_distill"
    row = "seed"
    classifies = False
    sees_other_processes = True  # by the queue
    micro = (*MICRO, "compress.queue=300", "compress.hidden=24")

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def teachers(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("teachers")
        train_row("moco_teacher", folder / "moco", *MICRO_MOCO, "student.kwargs.embed_dim=32", "train.epochs=2")
        cls.micro = (*cls.micro, f"teacher.weights={folder / 'moco'}")
        return folder


class TestFinetuning(Own):
    package = "mae_lite_distill"
    row = "scratch"
    micro = MICRO


class TestRelative(Own):
    package = "mae_lite_distill"
    row = "mae_relative_finetune"
    micro = (*MICRO, "student.start_row=null")


class TestToken(Own):
    package = "mae_lite_distill"
    row = "scratch"
    micro = (
        "student={name: deit_tiny_distilled_patch16_224, kwargs: {patch_size: 4, mlp_ratio: 2}}",
        "method.objective=token",
        "teacher={recipe: cnn}",
        *MICRO,
    )


class TestProbe(Own):
    package = "mae_lite_distill"
    row = "scratch_probe"
    micro = MICRO
