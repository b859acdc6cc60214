"""Who gets in, how long, and what the audit says of it (REQ-SEC-24, law 4)."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from archive import accounts, recognition
from archive.access import Action, Actor, Door, Role, rights
from archive.accounts import passwords
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Busy, Conflict, InvalidRequest, NotAllowed, NotAuthenticated, NotFound
from archive.schema import account, audit, session, token

PASSWORD = "correct horse battery"
EMBEDDED = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)  # rules that no database has a part in
HERE: dict[str, Any] = {"source": "10.0.0.7", "door": Door.API}


def told(archive: Archive) -> list[tuple[str, int, str, dict[str, Any]]]:
    with archive.engine.connect() as conn:
        return [
            (row.event, row.outcome, row.user, json.loads(row.detail))
            for row in conn.execute(select(audit).order_by(audit.c.pk))
        ]


def everything(archive: Archive) -> str:
    """All that the database says of people and secrets."""
    with archive.engine.connect() as conn:
        return repr([list(conn.execute(select(table))) for table in (account, session, token, audit)])


def add(archive: Archive, actor: Actor, name: str = "anais", *roles: str) -> accounts.Account:
    return accounts.add_account(archive, name, roles or ("radiologist",), PASSWORD, actor=actor).account


class TestAccounts:
    def test_an_account_gets_in_with_its_password(self, archive: Archive, actor: Actor) -> None:
        add(archive, actor, "anaïs.lefèvre", "quality", "radiologist", "quality")
        found = accounts.authenticate(archive, "anaïs.lefèvre", PASSWORD, **HERE)
        assert (found.name, found.roles) == ("anaïs.lefèvre", ("radiologist", "quality"))
        assert found.may == rights(["radiologist", "quality"])
        assert told(archive)[-1] == ("110114", 0, "anaïs.lefèvre", {"type": "110122"})
        assert PASSWORD not in everything(archive)

    def test_a_password_is_the_same_however_its_accents_are_typed(self, archive: Archive, actor: Actor) -> None:
        accounts.add_account(archive, "a", ["quality"], "mot de passé e\u0301", actor=actor)
        assert accounts.authenticate(archive, "a", "mot de passe\u0301 é", **HERE).name == "a"

    def test_a_password_can_be_made(self, archive: Archive, actor: Actor) -> None:
        made = accounts.add_account(archive, "a", ["quality"], actor=actor)
        assert made.password is not None and len(made.password) >= 20
        assert accounts.authenticate(archive, "a", made.password, **HERE) == made.account
        assert made.password not in everything(archive)

    @pytest.mark.req("REQ-SEC-24")
    @EMBEDDED
    @pytest.mark.parametrize(
        ("password", "reason"),
        [
            ("elevenchars", "has 11 characters, it needs 12"),
            ("", "has 0 characters"),
            ("e\u0301" * 11, "has 11 characters"),
            ("abababababababab", "different characters"),
            ("anais-2026-ok", "the account's name"),
            ("x" * 2000, "more than 1024"),
        ],
    )
    def test_a_weak_password_is_refused_in_words(
        self, archive: Archive, actor: Actor, password: str, reason: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=reason):
            accounts.add_account(archive, "anais", ["quality"], password, actor=actor)
        add(archive, actor)
        with pytest.raises(InvalidRequest, match=reason):
            accounts.set_password(archive, "anais", password, actor=actor)
        assert accounts.authenticate(archive, "anais", PASSWORD, **HERE)

    @EMBEDDED
    @pytest.mark.parametrize(
        ("name", "roles", "reason"),
        [
            ("a", ["surgeon"], "unknown role 'surgeon'; roles are: radiologist"),
            ("a", [], "at least one role"),
            ("", ["quality"], "printable"),
            (" a", ["quality"], "printable"),
            ("a\nb", ["quality"], "printable"),
            ("a" * 65, ["quality"], "1 to 64"),
        ],
    )
    def test_a_bad_name_or_role_is_refused_in_words(
        self, archive: Archive, actor: Actor, name: str, roles: list[str], reason: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=reason):
            accounts.add_account(archive, name, roles, PASSWORD, actor=actor)
        assert accounts.list_accounts(archive) == []

    def test_a_name_is_taken_in_whatever_case(self, archive: Archive, actor: Actor) -> None:
        add(archive, actor, "Anais")
        with pytest.raises(Conflict):
            add(archive, actor, "aNAIS")

    def test_only_who_administers_may_change_accounts(self, archive: Archive, actor: Actor) -> None:
        nurse = Actor(user="x", source="", door=Door.API, may=rights(["technologist"]))
        for change in (
            lambda: add(archive, nurse),
            lambda: accounts.set_password(archive, "a", actor=nurse),
            lambda: accounts.disable_account(archive, "a", actor=nurse),
            lambda: accounts.create_token(archive, "a", ["service"], actor=nurse),
            lambda: accounts.revoke_token(archive, "a", actor=nurse),
        ):
            with pytest.raises(NotAllowed):
                change()

    def test_a_wrong_password_an_unknown_name_and_a_disabled_account_sound_the_same(
        self, archive: Archive, actor: Actor
    ) -> None:
        add(archive, actor, "anais")
        add(archive, actor, "gone")
        accounts.disable_account(archive, "gone", actor=actor)
        said = set()
        for name, password in (("anais", "wrong horse battery"), ("nobody", PASSWORD), ("gone", PASSWORD)):
            with pytest.raises(NotAuthenticated) as refusal:
                accounts.authenticate(archive, name, password, **HERE)
            said.add(str(refusal.value))
        assert len(said) == 1
        last = told(archive)[-3:]
        assert [(event, outcome, user) for event, outcome, user, _ in last] == [
            ("110114", 8, "anais"),
            ("110114", 8, "nobody"),
            ("110114", 8, "gone"),
        ]
        assert last[2][3]["reason"] == "account disabled"  # the auditor may know more

    def test_an_unknown_name_costs_the_same_work(self, archive: Archive, actor: Actor) -> None:
        add(archive, actor)
        hashed = []
        honest = passwords._HASHER.verify

        class Counting:
            def verify(self, stored: str, password: str) -> bool:
                hashed.append(stored[:30])
                return honest(stored, password)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passwords, "_HASHER", Counting())
            for name in ("anais", "nobody"):
                with pytest.raises(NotAuthenticated):
                    accounts.authenticate(archive, name, "wrong horse battery", **HERE)
        assert len(hashed) == 2 and hashed[0] == hashed[1]  # same algorithm, same parameters

    def test_hashing_is_argon2id(self, archive: Archive, actor: Actor) -> None:
        add(archive, actor)
        with archive.engine.connect() as conn:
            assert conn.execute(select(account.c.password_hash)).scalar_one().startswith("$argon2id$v=19$")

    def test_a_hash_of_yesterdays_strength_is_renewed_at_the_next_login(self, archive: Archive, actor: Actor) -> None:
        from argon2 import PasswordHasher

        add(archive, actor)
        weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
        with archive.engine.connect().execution_options(minipacs_write=True) as conn:
            conn.execute(update(account).values(password_hash=weak))
            conn.commit()
        for _ in range(2):
            assert accounts.authenticate(archive, "anais", PASSWORD, **HERE)
        with archive.engine.connect() as conn:
            assert "m=32768" in conn.execute(select(account.c.password_hash)).scalar_one()

    def test_parallel_hashing_is_bounded(self, archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
        add(archive, actor)
        monkeypatch.setattr(passwords, "_PATIENCE_SECONDS", 0.05)
        with archive.recognition.hashing, archive.recognition.hashing, pytest.raises(Busy):
            accounts.authenticate(archive, "anais", PASSWORD, **HERE)
        assert accounts.authenticate(archive, "anais", PASSWORD, **HERE)

    def test_an_enabled_account_gets_in_again(self, archive: Archive, actor: Actor) -> None:
        add(archive, actor)
        accounts.disable_account(archive, "anais", actor=actor)
        accounts.enable_account(archive, "anais", actor=actor)
        assert accounts.authenticate(archive, "anais", PASSWORD, **HERE)

    def test_changes_of_nobody_are_not_found(self, archive: Archive, actor: Actor) -> None:
        for change in (accounts.disable_account, accounts.enable_account, accounts.set_password):
            with pytest.raises(NotFound):
                change(archive, "nobody", actor=actor)
        assert told(archive) == []

    def test_every_change_is_audited(self, archive: Archive, actor: Actor) -> None:
        add(archive, actor)
        accounts.set_password(archive, "anais", "another horse battery", actor=actor)
        accounts.disable_account(archive, "anais", actor=actor)
        made = accounts.create_token(archive, "ris", ["service"], actor=actor)
        accounts.revoke_token(archive, made.id, actor=actor)
        accounts.revoke_token(archive, made.id, actor=actor)
        assert {(event, outcome, user) for event, outcome, user, _ in told(archive)} == {("110113", 0, "tester")}
        assert [(detail["type"], detail["act"]) for *_, detail in told(archive)] == [
            ("110136", "account added"),
            ("110137", "password changed"),
            ("110137", "account disabled"),
            ("110136", "token created"),
            ("110137", "token revoked"),
        ]
        assert "another horse" not in everything(archive)


class TestThrottle:
    def fail(self, archive: Archive, name: str = "anais", source: str = "10.0.0.7") -> str:
        with pytest.raises(NotAuthenticated) as refusal:
            accounts.authenticate(archive, name, "wrong horse battery", source=source, door=Door.API)
        return str(refusal.value)

    @pytest.mark.req("REQ-SEC-24")
    def test_after_five_failures_even_the_right_password_waits(self, archive: Archive, actor: Actor) -> None:
        add(archive, actor)
        assert {self.fail(archive) for _ in range(5)} == {"the name or the password is wrong"}
        with pytest.raises(NotAuthenticated, match="wait 1 seconds"):
            accounts.authenticate(archive, "anais", PASSWORD, **HERE)
        assert told(archive)[-1][:3] == ("110114", 8, "anais")
        assert told(archive)[-1][3]["reason"] == "too many failures"

        assert accounts.authenticate(archive, "anais", PASSWORD, source="10.0.0.8", door=Door.API)  # from elsewhere
        time.sleep(1.05)
        assert accounts.authenticate(archive, "anais", PASSWORD, **HERE)
        assert self.fail(archive) == "the name or the password is wrong"  # counted anew

    def test_each_further_failure_waits_twice_as_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr(recognition, "monotonic", lambda: now[0])
        throttle = recognition.Throttle()
        waits = []
        for _ in range(16):
            throttle.failed("a", "here")
            waits.append(throttle.barred_seconds("a", "here"))
            now[0] += waits[-1]
        assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
        now[0] += 3600
        throttle.failed("a", "here")
        assert throttle.barred_seconds("a", "here") == 0  # forgotten

    def test_failures_from_many_places_slow_a_name_down_but_do_not_lock_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr(recognition, "monotonic", lambda: now[0])
        throttle = recognition.Throttle()
        for number in range(200):
            throttle.failed("a", f"10.0.0.{number}")
        assert throttle.barred_seconds("a", "elsewhere") == 60
        assert throttle.barred_seconds("b", "10.0.0.1") == 0

    def test_memory_of_failures_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recognition, "_FAILURES", 10)
        throttle = recognition.Throttle()
        for number in range(100):
            throttle.failed(f"a{number}", "here")
        assert len(throttle._failures) == 10


class TestTokens:
    def test_a_token_acts_under_its_name_with_its_roles(self, archive: Archive, actor: Actor) -> None:
        id, secret, expires = accounts.create_token(archive, "ris", ["service"], actor=actor)
        assert secret.startswith("mp_") and len(secret) >= 46 and expires is None
        found = accounts.actor_of_token(archive, secret, source="10.0.0.7", door=Door.DICOMWEB)
        assert found == Actor(user="ris", source="10.0.0.7", door=Door.DICOMWEB, may=rights(["service"]))
        assert secret not in everything(archive) and secret[3:] not in everything(archive)
        (known,) = accounts.list_tokens(archive)
        assert (known.id, known.name, known.roles) == (id, "ris", ("service",))

    def test_the_source_and_the_door_are_those_of_each_use(self, archive: Archive, actor: Actor) -> None:
        _, secret, _ = accounts.create_token(archive, "ris", ["service"], actor=actor)
        doors = [
            accounts.actor_of_token(archive, secret, source=s, door=d) for s, d in (("a", Door.API), ("b", Door.DESK))
        ]
        assert [(one.source, one.door) for one in doors] == [("a", Door.API), ("b", Door.DESK)]

    @EMBEDDED
    @pytest.mark.parametrize("secret", ["", "mp_", "mp_" + "A" * 43, "\ud800", "x" * 100_000])
    def test_any_other_secret_is_nobody(self, archive: Archive, actor: Actor, secret: str) -> None:
        accounts.create_token(archive, "ris", ["service"], actor=actor)
        with pytest.raises(NotAuthenticated):
            accounts.actor_of_token(archive, secret, **HERE)

    def test_a_revoked_token_is_nobody_at_once_here_and_within_five_seconds_elsewhere(
        self, settings: Settings, archive: Archive, actor: Actor
    ) -> None:
        id, secret, _ = accounts.create_token(archive, "ris", ["service"], actor=actor)
        with open_archive(settings, process="elsewhere") as elsewhere:
            for place in (archive, elsewhere):
                assert accounts.actor_of_token(place, secret, **HERE)
            accounts.revoke_token(archive, id, actor=actor)
            revoked = time.monotonic()
            with pytest.raises(NotAuthenticated, match="revoked"):
                accounts.actor_of_token(archive, secret, **HERE)
            with pytest.raises(NotAuthenticated):
                while time.monotonic() < revoked + 5:
                    accounts.actor_of_token(elsewhere, secret, **HERE)
                    time.sleep(0.05)

    def test_an_expired_token_is_nobody_even_if_it_was_used_just_now(
        self, archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, secret, expires = accounts.create_token(archive, "ris", ["service"], 3, actor=actor)
        assert expires is not None and timedelta(days=2.9) < expires - archive.real_clock() <= timedelta(days=3)
        for shown, good in ((expires - timedelta(seconds=1), True), (expires, False)):
            with monkeypatch.context() as patch:
                patch.setattr(archive.time, "real", lambda shown=shown: shown)
                if good:
                    assert accounts.actor_of_token(archive, secret, **HERE)
                else:
                    with pytest.raises(NotAuthenticated):
                        accounts.actor_of_token(archive, secret, **HERE)
                    archive.recognition.grants.forget()
                    with pytest.raises(NotAuthenticated, match="expired"):
                        accounts.actor_of_token(archive, secret, **HERE)

    @EMBEDDED
    @pytest.mark.parametrize("days", [0, -1, 4000])
    def test_a_strange_number_of_days_is_refused(self, archive: Archive, actor: Actor, days: int) -> None:
        with pytest.raises(InvalidRequest):
            accounts.create_token(archive, "ris", ["service"], days, actor=actor)

    def test_revoking_an_unknown_token_is_not_found(self, archive: Archive, actor: Actor) -> None:
        with pytest.raises(NotFound):
            accounts.revoke_token(archive, "nothing", actor=actor)

    def test_a_known_token_costs_no_question_to_the_database(self, archive: Archive, actor: Actor) -> None:
        from sqlalchemy import event

        _, secret, _ = accounts.create_token(archive, "ris", ["service"], actor=actor)
        accounts.actor_of_token(archive, secret, **HERE)
        asked: list[int] = []
        event.listen(archive.engine, "before_cursor_execute", lambda *_: asked.append(1))
        for _ in range(100):
            accounts.actor_of_token(archive, secret, **HERE)
        assert asked == []


class TestSessions:
    @pytest.fixture
    def moment(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> list[timedelta]:
        """Add to `moment[0]` to let real time pass; nothing is remembered from before."""
        passed = [timedelta(0)]
        honest = archive.time.real
        monkeypatch.setattr(archive.time, "real", lambda: honest() + passed[0])
        monkeypatch.setattr(recognition, "REMEMBER_SECONDS", 0.0)
        return passed

    def test_a_session_is_its_account(self, archive: Archive, actor: Actor) -> None:
        person = add(archive, actor, "anais", "technologist")
        secret = accounts.create_session(archive, person)
        found = accounts.actor_of_session(archive, secret, source="10.0.0.7", door=Door.DESK)
        assert found == Actor(user="anais", source="10.0.0.7", door=Door.DESK, may=rights(["technologist"]))
        assert secret not in everything(archive)

    @pytest.mark.req("REQ-SEC-24")
    def test_fifteen_idle_minutes_end_a_session(self, archive: Archive, actor: Actor, moment: list[timedelta]) -> None:
        assert archive.settings.api.session_idle_seconds == 15 * 60
        secret = accounts.create_session(archive, add(archive, actor))
        moment[0] = timedelta(minutes=13, seconds=59)
        assert accounts.actor_of_session(archive, secret, **HERE)
        moment[0] = timedelta(minutes=30)
        for _ in range(2):
            with pytest.raises(NotAuthenticated):
                accounts.actor_of_session(archive, secret, **HERE)
        event, outcome, user, detail = told(archive)[-1]
        assert (event, outcome, user, detail) == ("110114", 0, "anais", {"type": "110123", "requestor": False})
        with archive.engine.connect() as conn:
            assert conn.execute(select(session.c.pk)).all() == []

    def test_using_a_session_keeps_it_alive_until_the_end_of_the_day(
        self, archive: Archive, actor: Actor, moment: list[timedelta]
    ) -> None:
        secret = accounts.create_session(archive, add(archive, actor))
        for minutes in range(0, 12 * 60, 10):
            moment[0] = timedelta(minutes=minutes)
            assert accounts.actor_of_session(archive, secret, **HERE)
            archive.commit.run(lambda conn: None)  # what was to be written later is written
        moment[0] = timedelta(hours=12)
        with pytest.raises(NotAuthenticated):
            accounts.actor_of_session(archive, secret, **HERE)

    def test_the_last_sign_of_life_is_written_once_a_minute(
        self, archive: Archive, actor: Actor, moment: list[timedelta]
    ) -> None:
        secret = accounts.create_session(archive, add(archive, actor))
        seen = set()
        for second in range(0, 180, 5):
            moment[0] = timedelta(seconds=second)
            accounts.actor_of_session(archive, secret, **HERE)
            archive.commit.run(lambda conn: None)
            with archive.engine.connect() as conn:
                seen.add(conn.execute(select(session.c.last_seen_at)).scalar_one())
        assert 3 <= len(seen) <= 4

    def test_logging_out_ends_the_session_and_is_audited(self, archive: Archive, actor: Actor) -> None:
        secret = accounts.create_session(archive, add(archive, actor))
        accounts.actor_of_session(archive, secret, **HERE)
        for _ in range(2):
            accounts.end_session(archive, secret, **HERE)
        with pytest.raises(NotAuthenticated):
            accounts.actor_of_session(archive, secret, **HERE)
        assert [row for row in told(archive) if row[0] == "110114"] == [("110114", 0, "anais", {"type": "110123"})]

    @pytest.mark.parametrize("how", [accounts.disable_account, accounts.set_password])
    def test_a_disabled_account_or_a_new_password_ends_its_sessions(
        self, archive: Archive, actor: Actor, how: Any
    ) -> None:
        person, other = add(archive, actor, "anais"), add(archive, actor, "other")
        secrets = [accounts.create_session(archive, person) for _ in range(2)]
        others = accounts.create_session(archive, other)
        for secret in [*secrets, others]:
            accounts.actor_of_session(archive, secret, **HERE)
        how(archive, "anais", actor=actor)
        for secret in secrets:
            with pytest.raises(NotAuthenticated):
                accounts.actor_of_session(archive, secret, **HERE)
        assert accounts.actor_of_session(archive, others, **HERE)

    def test_sessions_that_nobody_came_back_to_are_cleared(
        self, archive: Archive, actor: Actor, moment: list[timedelta]
    ) -> None:
        person = add(archive, actor)
        for _ in range(3):
            accounts.create_session(archive, person)
        moment[0] = timedelta(hours=1)
        accounts.create_session(archive, person)
        with archive.engine.connect() as conn:
            assert len(conn.execute(select(session.c.pk)).all()) == 1
        assert [detail.get("type") for event, *_, detail in told(archive) if event == "110114"] == ["110123"] * 3


class TestFirstAccount:
    def test_is_made_once_with_a_password_of_its_own(self, archive: Archive) -> None:
        password = accounts.ensure_first_account(archive)
        assert password is not None
        found = accounts.authenticate(archive, "admin", password, **HERE)
        assert set(found.roles) == {Role.IT_ADMIN, Role.RADIOLOGIST}
        assert Action.SEE in found.may and Action.ADMINISTER in found.may
        assert accounts.ensure_first_account(archive) is None
        assert password not in everything(archive)

    def test_is_not_made_when_there_is_anybody(self, archive: Archive, actor: Actor) -> None:
        add(archive, actor)
        assert accounts.ensure_first_account(archive) is None
        assert len(accounts.list_accounts(archive)) == 1

    def test_is_made_once_by_processes_that_start_together(self, settings: Settings) -> None:
        def start(number: int) -> str | None:
            with open_archive(settings, process=f"p{number}") as archive:
                return accounts.ensure_first_account(archive)

        with ThreadPoolExecutor(4) as pool:
            made = [password for password in pool.map(start, range(4)) if password is not None]
        assert len(made) == 1
        with open_archive(settings, process="look") as archive:
            assert accounts.authenticate(archive, "admin", made[0], **HERE)
