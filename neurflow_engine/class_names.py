"""Names of classes: read from a file or timm's tables, found again when a person or a folder spells them differently.

In: a class map file, folder names, what a person typed. Out: one name per class index, class indices, and the rule that found them.
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from neurflow_engine.access import check_readable
from neurflow_engine.errors import DataError, ModelError, near_matches

IMAGENET = "timm's ImageNet table"
FOLDERS = "the data folders"
UNKNOWN = "unknown"

_LARGEST_MAP = 10 << 20  # bytes
_NUMBERED = re.compile(r"(\d+)(?:[_\-. ]+(.+))?")
_RANGE = re.compile(r"(\d+) *- *(\d+)")
_WORDNET_ID = re.compile(r"(n\d{8})(?:[_\-. ].*)?")


def folded(name: str) -> str:
    """The form in which names are compared: case, '_', '-' and repeated blanks make no difference."""
    return " ".join(re.sub(r"[_\-]", " ", name).casefold().split())


def find_class(given: str, class_names: Sequence[str], source: str = UNKNOWN) -> int:
    """The index of the class that ``given`` names; digits are an index.

    The spelling of the class list wins (of several equal names the first), then the same name in another case or with
    other separators, then synonyms. Raises DataError for an index out of range, an unknown name (near matches are named)
    and a synonym of several classes.
    """
    given = given.strip()
    if given.isdecimal():
        if int(given) < len(class_names):
            return int(given)
        raise DataError(f"Class index {given} is out of range: the model has {len(class_names)} classes, 0 to {len(class_names) - 1}.")
    if given in class_names:
        return list(class_names).index(given)
    terms = _Terms(tuple(class_names), source)
    found = terms.find(given)
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{index} ({class_names[index]})" for index in found)
        raise DataError(f"Class '{given}' may be any of {several}; give the index of the one you mean.")
    raise DataError(f"The model has no class '{given}'; expected one of its {len(class_names)} class names or an index."
                    + near_matches(given, terms.spellings))  # fmt: skip


def match_folders(folders: Sequence[str], class_names: Sequence[str], source: str = UNKNOWN) -> tuple[dict[str, int], str]:
    """Class index per folder that names one, and the rule that found them as a short sentence.

    The first rule that places every folder is taken, otherwise the one that places most of them; a folder that could mean
    several classes is left out, because a wrong true class is worse than none.
    """
    terms = _Terms(tuple(class_names), source)
    rules = {
        "class name": _by_name(folders, terms),
        "WordNet id": _by_wordnet_id(folders, len(class_names)),
        "the name after their number": _by_name_after_number(folders, terms),
        "number": _by_number(folders, terms, class_names, informative=source != UNKNOWN),
    }
    if source == UNKNOWN and len(folders) == len(class_names):
        rules["their sorted order"] = {folder: index for index, folder in enumerate(sorted(folders))}
    rule = max(rules, key=lambda name: len(rules[name]))  # max keeps the first of equals
    if not folders:
        return {}, "no true classes known: the images lie in no class folders"
    if not rules[rule]:
        shown = ", ".join(list(folders)[:3]) + (", ..." if len(folders) > 3 else "")
        return {}, f"no true classes known: no folder ({shown}) names a class of the model"
    return rules[rule], f"{len(rules[rule])} of {len(folders)} folders matched by {rule}"


@lru_cache(maxsize=8)
def imagenet_synonyms(n_classes: int) -> tuple[tuple[str, ...], ...] | None:
    """Per class of the ImageNet variant with that many classes: its WordNet id, then its names; None if there is no such variant."""
    from timm.data import ImageNetInfo, infer_imagenet_subset  # imports torch, which most callers do not need

    subset = infer_imagenet_subset({"num_classes": n_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return tuple((name, *info.label_name_to_description(name).split(", ")) for name in info.label_names())


def imagenet_names(n_classes: int) -> tuple[str, ...] | None:
    """One short name per class: the first of timm's ImageNet table, with its index behind it where several classes share it."""
    synonyms = imagenet_synonyms(n_classes)
    if synonyms is None:
        return None
    first = [names[1] for names in synonyms]
    uses = Counter(first)
    return tuple(name if uses[name] == 1 else f"{name} ({index})" for index, name in enumerate(first))


def read_class_map(path: Path, n_classes: int) -> tuple[str, ...]:
    """Class names from a file, by index.

    ``.txt``: one name per line. ``.csv``: one name per row, or a column of indices and a column of names, with or without a
    header. ``.json``: a list of names, ``{index: name}`` or ``{name: index}``. Raises ModelError when the file cannot be read,
    has another form, or does not name exactly ``n_classes`` classes.
    """
    readers = {".txt": _from_lines, ".csv": _from_table, ".json": _from_json}
    if path.suffix.lower() not in readers:
        raise ModelError(f"Class map {path} has to be a .txt, .csv or .json file.")
    text = _text(path, "Class map")
    try:
        names = readers[path.suffix.lower()](text)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"Class map {path} cannot be used: {error}.") from None
    if len(names) != n_classes:
        raise ModelError(f"Class map {path} names {len(names)} classes, but the model has {n_classes}; it needs one name per class.")
    return tuple(names)


def read_merge(path: Path, class_names: Sequence[str], source: str = UNKNOWN) -> dict[str, tuple[int, ...]]:
    """Which classes of a model count as one, for folders that tell less apart than the model does: their indices by the name of the whole.

    The file is JSON: ``{name: [class, ...]}``, where a class is its name, its index, or a range of indices such as ``"151-268"``, both
    ends included. Raises ModelError when the file cannot be read, names a class that does not exist or is named twice, or when a merged
    class has the name of one that stays.
    """
    text = _text(path, "File of merged classes")
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or not content or not all(isinstance(members, list) and members for members in content.values()):
            raise ValueError('expected {name: [class, ...]}, e.g. {"dog": ["151-268"], "cat": ["tabby", "Siamese cat"]}')
        merged = {
            name: tuple(index for member in members for index in _meant(member, class_names, source)) for name, members in content.items()
        }
        uses = Counter(index for indices in merged.values() for index in indices)
        if twice := [class_names[index] for index, count in uses.items() if count > 1]:
            raise ValueError(f"{_some(twice)} is named twice")
        staying = {folded(name) for index, name in enumerate(class_names) if index not in uses}
        if known := [name for name in merged if not name.strip() or folded(name) in staying]:
            raise ValueError(f"{_some(known)} is no new name: a class that stays is called so")
    except (ValueError, DataError) as error:
        raise ModelError(f"File of merged classes {path} cannot be used: {str(error).rstrip('.')}.") from None
    return merged


def _meant(member: object, class_names: Sequence[str], source: str) -> Sequence[int]:
    if isinstance(member, int) and not isinstance(member, bool):
        member = str(member)
    if not isinstance(member, str):
        raise ValueError(f"{member!r} is neither a name, an index nor a range of indices")
    if (ends := _RANGE.fullmatch(member)) and member not in class_names:
        first, last = (find_class(end, class_names, source) for end in ends.groups())
        if first > last:
            raise ValueError(f"range {member} ends before it begins")
        return range(first, last + 1)
    return [find_class(member, class_names, source)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def _text(path: Path, what: str) -> str:
    """What a small file of names holds; raises ModelError, and AccessError where it may not be read."""
    check_readable(path, what)
    try:
        if path.stat().st_size > _LARGEST_MAP:
            raise ModelError(f"{what} {path} has more than {_LARGEST_MAP >> 20} MB, so it holds no names; give another file.")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{what} {path} cannot be read ({getattr(error, 'strerror', None) or 'it is not UTF-8 text'}).") from None


class _Terms:
    """What the classes answer to: their own names, and weaker than those, synonyms."""

    def __init__(self, class_names: tuple[str, ...], source: str):
        table = imagenet_synonyms(len(class_names)) if source == IMAGENET else None
        self.spellings = list(class_names)  # to show to people
        self.names = defaultdict(list)
        self.synonyms = defaultdict(list)
        self.words = defaultdict(set)
        for index, name in enumerate(class_names):
            self.names[folded(name)].append(index)
            also = {name, *name.split(","), *(table[index] if table else ())}
            if (numbered := _NUMBERED.fullmatch(name)) and numbered[2]:
                also.add(numbered[2])
            self.spellings.extend(synonym.strip() for synonym in sorted(also))
            for term in {folded(synonym) for synonym in also} - {""}:
                self.synonyms[term].append(index)
                for word in term.split():
                    self.words[word].add(index)

    def find(self, name: str) -> list[int]:
        """Classes that the name may mean, ascending."""
        return self.names.get(folded(name)) or self.synonyms.get(folded(name), [])

    def closest(self, name: str) -> set[int]:
        """Classes that share most words with the name; empty when none shares any."""
        shared = Counter(index for word in set(folded(name).split()) for index in self.words.get(word, ()))
        most = max(shared.values(), default=0)
        return {index for index, count in shared.items() if count == most}


def _by_name(folders: Iterable[str], terms: _Terms) -> dict[str, int]:
    found = {folder: terms.find(folder) for folder in folders}
    return {folder: indices[0] for folder, indices in found.items() if len(indices) == 1}


def _by_wordnet_id(folders: Iterable[str], n_classes: int) -> dict[str, int]:
    ids = {folder: match[1] for folder in folders if (match := _WORDNET_ID.fullmatch(folder))}
    synonyms = imagenet_synonyms(n_classes) if ids else None
    index = {names[0]: position for position, names in enumerate(synonyms or ())}
    return {folder: index[wordnet_id] for folder, wordnet_id in ids.items() if wordnet_id in index}


def _by_name_after_number(folders: Iterable[str], terms: _Terms) -> dict[str, int]:
    found = {}
    for folder, number, name in _numbered(folders):
        indices = terms.find(name) if name else []
        if len(indices) == 1 or number in indices:
            found[folder] = number if number in indices else indices[0]
    return found


def _by_number(folders: Iterable[str], terms: _Terms, class_names: Sequence[str], informative: bool) -> dict[str, int]:
    """Numbers count as class indices only where the names beside them speak for it, since many data sets count from one."""
    numbered = [(folder, number, name) for folder, number, name in _numbered(folders) if number < len(class_names)]
    named = [(number, name) for _, number, name in numbered if name] if informative else []
    agree = sum(number in terms.closest(name) for number, name in named)
    return {folder: number for folder, number, _ in numbered} if not named or agree > len(named) / 2 else {}


def _numbered(folders: Iterable[str]) -> list[tuple[str, int, str | None]]:
    matches = ((folder, _NUMBERED.fullmatch(folder)) for folder in folders)
    return [(folder, int(match[1]), match[2]) for folder, match in matches if match]


def _from_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1} is empty")
    return lines


def _from_table(text: str) -> list[str]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
    width = len(rows[0]) if rows else 0
    if not rows or any(len(row) != width for row in rows):
        raise ValueError("its rows differ in length" if rows else "it is empty")
    for position in range(width):
        cells = [row[position] for row in rows]
        for header in (0, 1):
            if width > 1 and cells[header:] and all(cell.isdecimal() for cell in cells[header:]):
                name = _name_column(rows[0] if header else [], position, width)
                return _in_order({int(row[position]): row[name] for row in rows[header:]}, len(rows) - header)
    if width > 1:
        raise ValueError("it has several columns, but none of class indices")
    has_header = folded(rows[0][0]) in {"name", "class", "class name", "label"}
    return [row[0] for row in rows[has_header:]]


def _name_column(header: list[str], index_column: int, width: int) -> int:
    others = [position for position in range(width) if position != index_column]
    called = [position for position in others if header and folded(header[position]) in {"name", "class", "class name", "label"}]
    return (called or others)[0]


def _from_json(text: str) -> list[str]:
    content = json.loads(text)
    if isinstance(content, list):
        if not all(isinstance(name, str) for name in content):
            raise ValueError("its list holds something else than names")
        return content
    if isinstance(content, dict) and content and all(type(value) is int for value in content.values()):
        return _in_order({index: name for name, index in content.items()}, len(content))
    if isinstance(content, dict) and content and all(key.isdecimal() and isinstance(value, str) for key, value in content.items()):
        return _in_order({int(key): name for key, name in content.items()}, len(content))
    raise ValueError("expected a list of names, {index: name} or {name: index}")


def _in_order(names: dict[int, str], n_rows: int) -> list[str]:
    if sorted(names) != list(range(n_rows)):
        raise ValueError(f"its indices are not 0 to {n_rows - 1}, each once")
    return [names[index] for index in range(n_rows)]
