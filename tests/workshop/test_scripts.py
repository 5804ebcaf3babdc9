"""What the scripts share: who may start them, and settings refused in their words."""

import pytest

import train_cifar
import train_gradients
from tinyddpm.workshop import training
from tinyddpm.workshop.progress import errors_as_sentences


@pytest.mark.parametrize("main", [training.main, train_gradients.main])
def test_a_script_for_one_process_refuses_torchrun(main, monkeypatch, tmp_path):
    """Several processes that each wrote the same files would destroy each other's
    saves: one sentence names the script for torchrun, and nothing is written."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    argv = ["photos"] if main is training.main else []
    with pytest.raises(SystemExit) as ended, errors_as_sentences():
        main(argv)
    assert "train_cifar.py is the one for torchrun" in str(ended.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("T", [0, 1, 20])
def test_too_few_steps_are_refused_in_the_scripts_words(T):
    """β_T = 0.02 · 1000/T < 1 from T = 21 on; no flag sets β_T, so none is named."""
    with pytest.raises(ValueError, match=rf"^T must be above 20, got {T}: the paper's"):
        train_cifar.Config(T=T)
    assert 0.02 * 1000 / 21 < 1 == 0.02 * 1000 / 20
    assert train_cifar.Config(T=21).T == 21


def test_data_may_be_spelt_otherwise():
    """Where the pictures lie is no part of what a run is: their bytes are."""
    for config in (train_cifar.Config(), training.Config()):
        fixed = config.fixed()
        assert not {"data", "out", "device", "labels"} & set(fixed)
        assert {"seed", "batch", "T", "base"} <= set(fixed)
