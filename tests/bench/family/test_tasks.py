import pytest

from bench.family.tasks import TASKS, Task, items


@pytest.mark.parametrize("task", TASKS)
def test_items_are_repeatable_and_their_targets_right(task: Task) -> None:
    found = items(task, 50, "test")
    assert found == items(task, 50, "test")
    assert found != items(task, 50, "test", seed=1)
    assert all(item.right(f"{item.target}\nQ: more") for item in found)
    assert not any(item.right(" I do not know") for item in found)


@pytest.mark.parametrize("task", TASKS)
def test_no_test_prompt_is_a_training_prompt(task: Task) -> None:
    trained = {item.prompt for item in items(task, 3200, "train")}
    assert not trained & {item.prompt for item in items(task, 800, "test", seed=1)}
