"""Names of processes: judged only where a pid has a meaning, and never by a pid alone."""

from __future__ import annotations

import os
import subprocess
import sys

from wflo_nb.store.holder import is_dead, this_holder


def ask_child(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_this_process_is_alive_and_keeps_its_name() -> None:
    assert not is_dead(this_holder())
    assert this_holder() == this_holder()


def test_a_process_that_ended_is_dead() -> None:
    assert is_dead(ask_child("from wflo_nb.store.holder import this_holder; print(this_holder())"))


def test_a_pid_used_again_by_another_process_is_not_mistaken_for_its_former_owner() -> None:
    host, pid, _, random = this_holder().split("|")
    assert is_dead(f"{host}|{pid}|1@00000000|{random}")


def test_a_process_of_another_machine_is_never_judged() -> None:
    _, *rest = ask_child("from wflo_nb.store.holder import this_holder; print(this_holder())").split("|")
    assert not is_dead("|".join(["elsewhere#12345678", *rest]))


def test_a_name_that_cannot_be_read_is_never_judged() -> None:
    assert not any(is_dead(name) for name in ("", "x", "a|b|c|d", "a|1|2", "host:1:abc"))


def test_a_forked_child_has_a_name_of_its_own() -> None:
    mine = this_holder()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, this_holder().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    childs = os.read(read, 1000).decode()
    os.close(read)
    assert childs != mine and is_dead(childs)
