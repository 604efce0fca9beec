"""What a gate says, for a terminal, for a pull request and for a CI system. Imports no torch.

In: a ``Gate``. Out: text, Markdown, JUnit XML. Names of classes and folders come from anywhere: in Markdown they are code in which nothing
is markup, nor calls a person by name or links anywhere, and in XML they hold no character that it does not allow.
"""

import re
from collections.abc import Callable
from xml.etree import ElementTree as xml

from neurflow_engine.gate import ClassChange, Gate, Said, Verdict, Worst
from neurflow_engine.shares import Share

_SHOWN = 50  # classes in a table, and names in a sentence
_LONGEST = 300  # characters of a name or a message
_MARKUP = re.compile(r"[^\w /-]|_")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OF_INTEREST = (Verdict.FAILED, Verdict.NEW, Verdict.GROWN, Verdict.STILL, Verdict.VANISHED, Verdict.UNSEEN)


def _name(text: str) -> str:
    """A name for a terminal: on one line, without what would steer it."""
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _code(text: str) -> str:
    """A name as code in Markdown, in which every character that could be markup is written by its number."""
    return f"<code>{_MARKUP.sub(lambda found: f'&#{ord(found[0])};', _name(text))}</code>"


def as_text(gate: Gate) -> str:
    """For a terminal: the verdict, why, and the classes of interest, a line each."""
    lines = [_verdict(gate), *(f"- {_sentence(one)}" for one in gate.problems)]
    for change in _of_interest(gate):
        wrong = f"taken for it {_arrow(change.before.wrong, change.after.wrong)}"
        recall = f"recall {_arrow(change.before.recall, change.after.recall)}"
        lines.append(f"{_name(change.name):<24} {change.verdict:<17} {wrong}  {recall}  {_groups(change)}")
    lines.append(f"worst class {_worst(gate.worst[0])} -> {_worst(gate.worst[1])}")
    return "\n".join([*lines, *(f"Note: {_sentence(one)}" for one in gate.notes)])


def as_markdown(gate: Gate) -> str:
    """A summary for a pull request: the verdict, why, and tables."""
    parts = [f"## {'✅' if gate.passed else '❌'} {_verdict(gate)}"]
    if gate.problems:
        parts.append("\n".join(f"- **{_sentence(one, _code)}**" for one in gate.problems))
    if shown := _of_interest(gate):
        rows = [
            (
                _code(change.name),
                f"**{change.verdict}**" if gate.breaks(change) else change.verdict,
                _arrow(change.before.wrong, change.after.wrong),
                _arrow(change.before.recall, change.after.recall) + (" (lost)" if change.lost_recall else ""),
                _groups(change, _code),
            )
            for change in shown[:_SHOWN]
        ]
        parts.append(_table(("class", "", "images of others taken for it", "recall", "what misleads"), rows))
        if len(shown) > _SHOWN:
            parts.append(f"And {len(shown) - _SHOWN} more classes.")
    else:
        parts.append("No class of either model is misled.")
    rows = [(when, _worst(worst, _code)) for when, worst in zip(("baseline", "candidate"), gate.worst, strict=True)]
    parts.append(_table(("worst class", "recall"), rows))
    if gate.notes:
        parts.append("\n".join(f"- {_sentence(one, _code)}" for one in gate.notes))
    clean = f"{len(gate.of(Verdict.CLEAN))} of {len(gate.classes)} classes are not misled. "
    parts.append(f"{clean}Baseline {_code(gate.baseline.id)}, candidate {_code(gate.candidate.id)}. In brackets: 95 % intervals.")
    return "\n\n".join(parts) + "\n"


def as_junit(gate: Gate) -> bytes:
    """JUnit XML: one test for each class and one for the worst class; what is not to pass fails."""
    suite = xml.Element("testsuite", name="neurflow gate", hostname="localhost", errors="0")
    suite.set("timestamp", gate.candidate.created.strftime("%Y-%m-%dT%H:%M:%S"))
    properties = xml.SubElement(suite, "properties")
    for name, value in {"baseline": gate.baseline.id, "candidate": gate.candidate.id, **vars(gate.limits)}.items():
        if value is not None:
            xml.SubElement(properties, "property", name=name, value=str(value))
    for change in gate.classes:
        seconds = change.after.outcome.seconds if change.after.outcome else 0.0
        case = xml.SubElement(suite, "testcase", classname="neurflow.classes", name=_legal(change.name), time=f"{seconds:.3f}")
        if gate.breaks(change):
            _fail(case, change.verdict, _told(change))
        elif change.verdict == Verdict.UNSEEN:
            xml.SubElement(case, "skipped", message="The candidate did not look at this class.")
    case = xml.SubElement(suite, "testcase", classname="neurflow", name="worst class", time="0.000")
    broken = [one for one in gate.problems if one.of_worst]
    if broken:
        _fail(case, "worst class", " ".join(map(_sentence, broken)))
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("time", f"{sum(float(case.get('time')) for case in suite.findall('testcase')):.3f}")
    xml.SubElement(suite, "system-out").text = _legal(as_text(gate))
    xml.SubElement(suite, "system-err")
    return xml.tostring(suite, encoding="utf-8", xml_declaration=True)


def _fail(case: xml.Element, kind: str, message: str) -> None:
    xml.SubElement(case, "failure", type=kind, message=_legal(message)).text = _legal(message)


def _told(change: ClassChange) -> str:
    """Why a class does not pass, in a sentence."""
    if change.verdict == Verdict.FAILED:
        return f"It failed, so nobody knows what misleads it: {change.after.outcome.message}"
    wrong = _arrow(change.before.wrong, change.after.wrong)
    return f"The model is {change.verdict} towards this class by {_groups(change)}; images of other classes that are taken for it: {wrong}."


def _verdict(gate: Gate) -> str:
    return "Gate passed" if gate.passed else "Gate not passed"


def _of_interest(gate: Gate) -> list[ClassChange]:
    return gate.of(*_OF_INTEREST) + [change for change in gate.of(Verdict.CLEAN) if change.lost_recall]


def _sentence(said: Said, written: Callable[[str], str] = _name) -> str:
    names = [written(name) for name in said.names[:_SHOWN]]
    more = f" and {len(said.names) - _SHOWN} more" if len(said.names) > _SHOWN else ""
    return f"{said.text}: {', '.join(names)}{more}." if names else f"{said.text}."


def _groups(change: ClassChange, written: Callable[[str], str] = _name) -> str:
    """What misleads towards a class, now, or before where nothing does any more."""
    side = change.after if change.after.flags else change.before
    if change.verdict == Verdict.FAILED:
        return written(change.after.outcome.message or "")
    if not side.flags:
        return ""
    first = side.outcome.flags[0]
    figures = f"brings back {_percent(first.recovered)} {_interval(*first.recovered_interval)}"
    control = f"random {_percent(first.control.mean)} {_interval(first.control.low, first.control.high)}"
    more = f", and {len(side.flags) - 1} more" if len(side.flags) > 1 else ""
    return f"{written(first.group)} ({figures}, {control}){more}" + (" in the baseline" if side is change.before else "")


def _arrow(before: Share | None, after: Share | None) -> str:
    return f"{_share(before)} → {_share(after)}"


def _share(share: Share | None) -> str:
    return f"{_percent(share.value)} {_interval(*share.interval)}" if share else "–"


def _worst(worst: Worst | None, written: Callable[[str], str] = _name) -> str:
    return f"{written(worst.name)} {_share(worst.recall)} of {worst.recall.of}" if worst else "–"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(low: float, high: float) -> str:
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


def _legal(text: str) -> str:
    """Text without the characters that XML does not allow."""
    return _NOT_XML.sub("�", text)
