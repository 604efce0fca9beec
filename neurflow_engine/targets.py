"""Which classes of an evaluation are meant. Imports no torch.

In: an evaluation, and what was asked for in words. Out: indices of classes.
"""

from collections.abc import Callable

from neurflow_engine.errors import DataError, InputError
from neurflow_engine.store import Evaluation

ALL, WORST = "all", "worst:"


def choose(evaluation: Evaluation, targets: str, index_of: Callable[[str], int]) -> list[int]:
    """Indices of the classes that are meant, those asked for by name in the order given, else by index.

    Raises:
        DataError: a class does not exist; InputError: there is none, or no number behind ``worst:``.
    """
    if targets == ALL:
        return list(range(len(evaluation.class_names)))
    if targets.startswith(WORST):
        number = targets.removeprefix(WORST)
        if not number.isdecimal() or not int(number):
            raise InputError(f"--targets {targets}: expected a number of classes from 1, e.g. {WORST}20.")
        table = evaluation.per_class()
        if table["false_positives"].isna().all():
            raise DataError("No true class is known for these images, so no class is worse than another; name classes, or take all.")
        worst = table.sort_values(["false_positives", "predicted_images"], ascending=False, kind="stable")
        return [int(index) for index in worst["index"][: int(number)]]
    names = list(dict.fromkeys(index_of(name.strip()) for name in targets.split(",") if name.strip()))
    if not names:
        raise InputError("--targets names no class; give names or indices separated by commas, all, or worst:20.")
    return names
