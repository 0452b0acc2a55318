"""NVIDIA's service around packed processes: started, told to the clients, stopped; where it cannot run, processes take turns."""

from __future__ import annotations

import pytest
from selftrain import mps


@pytest.fixture
def control(tmp_path, monkeypatch):
    """A daemon that writes down how it was called, in place of NVIDIA's; `control(code)` sets its exit status."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()

    def script(code: int) -> None:
        path = folder / mps.CONTROL
        path.write_text(
            f'#!/bin/sh\n[ "$1" = -d ] && echo "start $CUDA_MPS_PIPE_DIRECTORY$CUDA_VISIBLE_DEVICES" >> {calls} && ls -d "$CUDA_MPS_PIPE_DIRECTORY" >/dev/null && '
            f'echo "cannot start" >&2 && exit {code}\necho "stop $(cat)" >> {calls}\n'
        )
        path.chmod(0o755)

    script(0)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv(mps.PIPES, raising=False)
    monkeypatch.setattr(mps, "CLIENT", ["true"])
    return type("Control", (), {"fails": staticmethod(lambda: script(3)), "calls": staticmethod(lambda: calls.read_text().splitlines())})


def test_it_runs_for_the_length_of_the_block_also_where_the_block_fails(control, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # for clients, not for the daemon
    with pytest.raises(KeyError), mps.shared_device() as clients:
        assert set(clients) == {mps.PIPES, mps.LOGS} and len(control.calls()) == 1
        raise KeyError
    start, stop = control.calls()
    assert start == f"start {clients[mps.PIPES]}" and stop.startswith("stop quit")


def test_a_service_that_does_not_start_costs_a_warning(control, caplog):
    control.fails()
    with mps.shared_device() as clients:
        assert clients == {}
    assert "did not start (cannot start)" in caplog.text and control.calls()[-1].startswith("stop quit")


def test_a_service_that_no_client_can_use_costs_a_warning(control, monkeypatch, caplog):
    monkeypatch.setattr(mps, "CLIENT", ["sh", "-c", "echo no server; exit 1"])
    with mps.shared_device() as clients:
        assert clients == {}
    assert "did not start (no server)" in caplog.text and control.calls()[-1].startswith("stop quit")


def test_a_service_of_the_users_own_is_used_and_left_alone(control, monkeypatch):
    monkeypatch.setenv(mps.PIPES, "/theirs")
    with mps.shared_device() as clients:
        assert clients == {mps.PIPES: "/theirs"}
    with pytest.raises(FileNotFoundError):
        control.calls()


def test_without_the_service_or_the_wish_for_it_nothing_is_started(control, monkeypatch):
    monkeypatch.setenv(mps.PIPES, "/theirs")
    with mps.shared_device(False) as clients:
        assert set(clients) == {mps.PIPES} and clients[mps.PIPES] != "/theirs"
    monkeypatch.delenv(mps.PIPES)
    monkeypatch.setenv("PATH", "/nowhere")
    with mps.shared_device() as clients:
        assert clients == {}
    with pytest.raises(FileNotFoundError):
        control.calls()
