"""Reading ahead: in order, bounded, and honest about errors."""

import threading
import time

import pytest

from nimbus_sd.engine.readahead import read_ahead


@pytest.mark.parametrize("n_threads", [0, 1, 4])
def test_results_come_in_the_order_of_the_jobs(n_threads):
    def slow_first(i):
        time.sleep(0.02 if i % 4 == 0 else 0)
        return i * i

    assert list(read_ahead(slow_first, range(20), n_threads=n_threads)) == [i * i for i in range(20)]


@pytest.mark.parametrize(("n_threads", "window"), [(1, None), (3, None), (3, 2), (2, 6)])
def test_no_more_than_the_window_is_under_way(n_threads, window):
    started, worst = [], 0

    def job(i):
        started.append(i)
        return i

    for taken in read_ahead(job, range(40), n_threads=n_threads, window=window):
        time.sleep(0.001)
        worst = max(worst, len(started) - taken)
    assert worst <= (window or n_threads + 1)


def test_it_is_the_threads_that_work():
    names = set(read_ahead(lambda _: threading.current_thread().name, range(8), n_threads=2))
    assert all(name.startswith("nimbus-read") for name in names)
    assert set(read_ahead(lambda _: threading.current_thread().name, range(2), n_threads=0)) == {
        threading.current_thread().name
    }


@pytest.mark.parametrize("n_threads", [0, 2])
def test_an_error_comes_at_its_place_and_stops_the_rest(n_threads):
    started = []

    def job(i):
        started.append(i)
        if i == 3:
            msg = "job 3"
            raise ValueError(msg)
        return i

    got = []
    with pytest.raises(ValueError, match="job 3"):
        got.extend(iter_into(got, read_ahead(job, range(100), n_threads=n_threads)))
    assert got == [0, 1, 2]
    assert len(started) < 10


def iter_into(out, stream):
    for item in stream:
        out.append(item)
    return []


def test_stopping_early_starts_no_more_jobs():
    started = []
    stream = read_ahead(lambda i: started.append(i) or i, range(100), n_threads=2)
    assert next(stream) == 0
    stream.close()
    assert len(started) <= 4
