"""Taking over another archive: its studies by windows of dates, of each what is missing, fetched and checked.

A window whose answers the peer cuts off is split, to a day and then to a second. Every study is compared, instance by
instance, with what the peer lists of it; what became of it is in `archive.takeover`, so that a run that was broken off
goes on, and one that is run again pulls what is missing and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import partial
from time import sleep

import structlog

from archive import takeover
from archive.access import Actor
from archive.core import Archive
from archive.dicom.header import is_legal_uid
from archive.errors import Busy
from archive.index.asked import audit_query
from archive.policy import local_day
from archive.takeover import Announced, Checked, Listed
from dicom_scp.ends import AssociationEnd
from dicom_scp.remote import CLASSES_AT_ONCE, Answers, Refused, Remote, Row, requests_for, value

log = structlog.get_logger(__name__)

# Fetches of a study (its UID) what is listed there and missing here; why not all of it came, as far as the peer says.
Fetch = Callable[[str, Sequence[Listed], Sequence[Listed]], str]

_FIRST = date(1900, 1, 1)
_MONTHS_FROM = date(2000, 1, 1)  # before it one window
_REFUSED = 5  # instances in a row that are asked for alone and do not come: then the rest is left
_LOST = 5  # studies in a row for which the peer is away: then the run ends
_DAY_SECONDS = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """Studies between two dates, both included, None open; of one day also between two seconds of it."""

    first: date | None
    last: date | None
    seconds: tuple[int, int] | None = None

    @property
    def keys(self) -> dict[str, str]:
        """Study Date and Study Time to ask for (PS3.4 C.2.2.2.5)."""
        first, last = (f"{day:%Y%m%d}" if day else "" for day in (self.first, self.last))
        days = first if first == last else f"{first}-{last}"
        times = "-".join(_time(one) for one in self.seconds) if self.seconds else ""
        return {"StudyDate": days, "StudyTime": times}

    def split(self, today: date) -> tuple[Window, Window] | None:
        """Two halves; None: it is one second."""
        first, last = self.first or _FIRST, self.last or max(today, self.first or today) + timedelta(days=366)
        if first < last:
            middle = first + (last - first) // 2
            return Window(self.first, middle), Window(middle + timedelta(days=1), self.last)
        start, end = self.seconds or (0, _DAY_SECONDS - 1)
        if start >= end:
            return None
        half = (start + end) // 2
        return Window(first, last, (start, half)), Window(first, last, (half + 1, end))


def _time(second: int) -> str:
    return f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}"


def windows(since: date | None, until: date | None, *, today: date) -> Iterator[Window]:
    """Months, with what lies before 2000 in one window, and the last one open where nobody said until when."""
    if since is None:
        before = _MONTHS_FROM - timedelta(days=1)
        yield Window(None, before if until is None else min(before, until))
    start = since or _MONTHS_FROM
    end = until or max(today, start)
    while start <= end:
        following = (start.replace(day=1) + timedelta(days=32)).replace(day=1)
        last: date | None = min(following - timedelta(days=1), end)
        if following > end and until is None:
            last = None
        yield Window(start, last)
        start = following


def fetching(remote: Remote, via: str) -> Fetch:
    """C-GET on an association of ours, or C-MOVE to our own port."""
    return _Get(remote) if via == "get" else _Move(remote)


@dataclass(frozen=True, slots=True)
class _Move:
    remote: Remote

    def __call__(self, study_uid: str, listed: Sequence[Listed], missing: Sequence[Listed]) -> str:
        return _joined(self.remote.move(keys) for keys in requests_for(study_uid, listed, missing))


@dataclass(frozen=True, slots=True)
class _Get:
    remote: Remote

    def __call__(self, study_uid: str, listed: Sequence[Listed], missing: Sequence[Listed]) -> str:
        return _joined(self._groups(study_uid, listed, missing))

    def _groups(self, study_uid: str, listed: Sequence[Listed], missing: Sequence[Listed]) -> Iterator[str]:
        classes = [uid for uid in dict.fromkeys(one.sop_class_uid for one in missing) if uid]
        groups = [classes[start : start + CLASSES_AT_ONCE] for start in range(0, len(classes), CLASSES_AT_ONCE)]
        wanted = [(some, [one for one in missing if one.sop_class_uid in some]) for some in groups]
        if unknown := [one for one in missing if not one.sop_class_uid]:
            with self.remote.asking() as asking:
                any_of = asking.classes(study_uid)[:CLASSES_AT_ONCE]
            if not any_of:
                yield "the peer does not say of which SOP class its instances are: pull them with C-MOVE"
                return
            wanted.append((any_of, unknown))
        for some, instances in wanted:
            for keys in requests_for(study_uid, listed, instances):
                yield self.remote.get(keys, some)


def _joined(reasons: Iterator[str]) -> str:
    """All is asked for, whatever became of the first."""
    return "; ".join(dict.fromkeys(one for one in reasons if one))


@dataclass(slots=True)
class Takeover:
    """One run.

    Args:
        actor: who runs it.
        limit: as many answers as this mean that the peer has more; 0: it says so by its status.
        anew: complete studies are compared again.
        pause_seconds: between two studies that were fetched.
        may_go_on: called before each study; returns when it may be fetched (hours of the night).
        progress: told how many studies are done, of how many known so far.
    """

    remote: Remote
    fetch: Fetch
    actor: Actor
    limit: int = 0
    anew: bool = False
    pause_seconds: float = 0
    may_go_on: Callable[[], None] = lambda: None
    progress: Callable[[int, int], None] = lambda _done, _total: None
    warnings: list[str] = field(default_factory=list)
    lost: int = 0  # studies in a row for which the peer was away
    _done: int = 0
    _known: int = 0

    @property
    def _archive(self) -> Archive:
        return self.remote.archive

    def run(self, since: date | None = None, until: date | None = None) -> None:
        """Pull what is missing of the studies between two dates, both included; without dates all, those without a date
        too, where the peer lists them. What could not be listed is in `warnings`.

        Raises:
            Busy: the peer is away. Unavailable: this archive cannot take more. Both: running again goes on.
        """
        today = local_day(self._archive.clock())
        asked = {"query": {"takeover": self.remote.name, "since": str(since or ""), "until": str(until or "")}}
        for window in windows(since, until, today=today):
            self._walk(window, today, asked)
        if since is None and until is None:
            self._undated(asked)

    def _walk(self, window: Window, today: date, asked: dict[str, dict[str, str]]) -> None:
        answers = self._studies(asked, window.keys)
        self._all(self._announced(answers))
        if answers.complete and not (self.limit and answers.seen >= self.limit):
            return
        halves = window.split(today)
        if halves is None:
            self.warnings.append(f"{window.keys['StudyDate']} {window.keys['StudyTime']}: the peer does not list all")
            return
        if halves[0].seconds is not None and window.seconds is None:
            day = window.keys["StudyDate"]
            self.warnings.append(
                f"{day}: the peer limits its answers; studies of this day without a time may be missing"
            )
        for half in halves:
            self._walk(half, today, asked)

    def _undated(self, asked: dict[str, dict[str, str]]) -> None:
        """Those that no window holds: without a date, or with one that is none."""
        with self._archive.reading() as conn:
            known = takeover.known(conn, self.remote.name)

        def wanted(row: Row) -> bool:
            return not value(row, "StudyDate") or value(row, "StudyInstanceUID") not in known

        answers = self._studies(asked, {"StudyDate": "", "StudyTime": ""}, wanted=wanted)
        self._all(self._announced(answers))
        if not answers.complete or (self.limit and answers.seen >= self.limit):
            self.warnings.append("the peer limits its answers: its studies without a date cannot be listed")

    def _studies(
        self,
        asked: dict[str, dict[str, str]],
        keys: dict[str, str],
        *,
        wanted: Callable[[Row], bool] = lambda _row: True,
    ) -> Answers:
        audit_query(self._archive.commit, self.actor, parameters=asked)
        back = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "", "NumberOfStudyRelatedInstances": ""}
        try:
            with self.remote.asking() as asking:
                return asking.find(back | keys, wanted=wanted)
        except (AssociationEnd, Refused) as error:
            raise Busy(f"{self.remote.name} cannot be queried: {error}") from error

    def _announced(self, answers: Answers) -> list[Announced]:
        found: dict[str, Announced] = {}
        for row in answers.rows:
            uid, number = value(row, "StudyInstanceUID"), value(row, "NumberOfStudyRelatedInstances")
            if not is_legal_uid(uid):
                self.warnings.append("the peer names a study by something that is no UID")
                continue
            instances = int(number) if number.isascii() and number.isdigit() and len(number) <= 9 else None
            found[uid] = Announced(uid, value(row, "StudyDate"), instances)
        return list(found.values())

    def _all(self, found: list[Announced]) -> None:
        """The studies of a window, one after the other."""
        at = self._archive.real_clock()
        self._archive.commit.run(lambda conn: takeover.note(conn, self.remote.name, found, at=at))
        self._known += len(found)
        for one in found:
            self.may_go_on()
            checked = self.study(one)
            self._done += 1
            self.progress(self._done, self._known)
            if checked is not None and self.pause_seconds:
                sleep(self.pause_seconds)

    def study(self, announced: Announced) -> Checked | None:
        """Pull what is missing of one study, and write down how it then stands; None: it was complete already."""
        before = self._last(announced)
        if before is not None and before.state == "complete" and not self.anew:
            with self._archive.reading() as conn:
                held = takeover.instances_here(conn, announced.study_instance_uid)
            as_before = before.announced is not None and announced.instances == before.announced
            if as_before and held >= before.listed:
                return None
        checked: Checked | None = None
        for _ in range(2):  # once more when the peer broke off
            try:
                checked = self._pulled(announced)
                self.lost = 0
                break
            except (Refused, AssociationEnd) as error:
                checked = replace(self._last(announced) or _unseen(announced), state="incomplete", why=str(error))
                if isinstance(error, Refused):
                    break
        else:
            self.lost += 1
        assert checked is not None
        self._settle(checked)
        log.info(
            "a study of another archive",
            study=checked.study_instance_uid,
            state=checked.state,
            listed=checked.listed,
            missing=checked.missing,
        )
        if self.lost >= _LOST:
            self._demand_answer()
        return checked

    def _pulled(self, announced: Announced) -> Checked:
        """Compare a study with what the peer lists, fetch what is missing, and look again."""
        study_uid = announced.study_instance_uid
        with self.remote.asking() as asking:
            listed = asking.instances(study_uid)
        missing = self._missing(listed)
        before = self._last(announced)
        # what was here before is known, durably, before anything comes: a run that is killed counts right
        already = before.already_here if before is not None and before.listed else len(listed) - len(missing)
        checked = replace(_unseen(announced), listed=len(listed), already_here=already)
        why = ""
        if missing:
            self._settle(_compared(checked, missing, "found"))
            try:
                why = self.fetch(study_uid, listed, missing)
                missing = self._missing(listed)
                if len(missing) > 1 or len(listed) > len(missing) > 0:
                    why = self._singly(study_uid, listed, missing) or why
            except AssociationEnd:
                self._settle(_compared(checked, self._missing(listed), "found"))
                raise
            missing = self._missing(listed)
        if not listed:
            why = why or "the peer lists no instance of it"
        elif missing:
            why = why or "the peer did not send them, or they were refused"
        state = "complete" if listed and not missing else "incomplete"
        return replace(_compared(checked, missing, state), why=why if state == "incomplete" else "")

    def _demand_answer(self) -> None:
        """After studies in a row for which the peer was away: it may be these studies. Raises Busy: it is away."""
        self.lost = 0
        try:
            with self.remote.asking():
                pass
        except AssociationEnd as error:
            raise Busy(f"{self.remote.name} is away: {error}; run it again later, it goes on") from error

    def _singly(self, study_uid: str, listed: Sequence[Listed], missing: Sequence[Listed]) -> str:
        """What did not come with the others, one by one: some archives stop at the first that they cannot give."""
        why, in_a_row = "", 0
        for one in missing:
            try:
                why = self.fetch(study_uid, listed, [one]) or why
            except AssociationEnd as error:
                why = str(error)
            in_a_row = in_a_row + 1 if self._missing([one]) else 0
            if in_a_row == _REFUSED:
                break
        return why

    def _last(self, announced: Announced) -> Checked | None:
        with self._archive.reading() as conn:
            return takeover.last(conn, self.remote.name, announced.study_instance_uid)

    def _settle(self, checked: Checked) -> None:
        write = partial(takeover.settle, peer=self.remote.name, checked=checked, at=self._archive.real_clock())
        self._archive.commit.run(write)

    def _missing(self, listed: list[Listed]) -> list[Listed]:
        with self._archive.reading() as conn:
            here = takeover.here(conn, [one.sop_instance_uid for one in listed])
        return [one for one in listed if one.sop_instance_uid not in here]


def _unseen(announced: Announced) -> Checked:
    return Checked(announced.study_instance_uid, announced.study_date, "found", announced.instances)


def _compared(checked: Checked, missing: Sequence[Listed], state: str) -> Checked:
    uids = tuple(one.sop_instance_uid for one in missing)
    return replace(checked, missing=len(uids), missing_uids=uids, state=state)
