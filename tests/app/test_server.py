"""What the server says to whom: the token, addresses that are none, every kind of answer."""

import http.client
import io
import re

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

from nimbus_sd import app
from nimbus_sd._core.errors import InputError
from nimbus_sd.app._guard import cookie_name
from nimbus_sd.app._routes import application
from nimbus_sd.app._session import Session
from nimbus_sd.app._tiles import EDGE

pytestmark = pytest.mark.filterwarnings("ignore")  # spatialdata's and zarr's own
TOKEN = "a-token"  # noqa: S105 - of this test alone


@pytest.fixture
def session(small, tmp_path):
    return Session(small, log=tmp_path / "log.jsonl")


@pytest.fixture
def stranger(session):
    return TestClient(application(session, TOKEN, reviewer="anna"), base_url="http://127.0.0.1:8765")


@pytest.fixture
def client(stranger):
    stranger.headers["x-review-token"] = TOKEN
    return stranger


EVERYWHERE = (
    "/",
    "/static/js/main.js",
    "/api/session",
    "/api/answers.csv",
    "/tiles/0/0/0/0/cells",
    "/crops/0.png?marker=CD3",
    "/nowhere",
    "/s/wrong/api/session",
    "/?token=wrong",
    "/api/session?token=a-token",
)


@pytest.mark.parametrize("path", EVERYWHERE)
def test_without_the_token_everything_is_forbidden(stranger, path):
    for headers in ({}, {"x-review-token": "wrong"}, {"cookie": f"{cookie_name('127.0.0.1:8765')}=wrong"}):
        assert stranger.get(path, headers=headers).status_code == 403
    assert stranger.post("/api/save", json={}).status_code == 403


def test_the_token_in_the_address_becomes_a_cookie_and_leaves_the_address(stranger):
    first = stranger.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert stranger.get("/").status_code == 200
    assert stranger.get("/api/session").json()["reviewer"] == "anna"


def test_a_frame_needs_no_cookie(stranger):
    page = stranger.get(f"/s/{TOKEN}/")
    assert page.status_code == 200
    assert "frame-ancestors" not in page.headers["content-security-policy"]
    assert stranger.get(f"/s/{TOKEN}/api/session").status_code == 200
    assert not stranger.cookies


def test_a_foreign_host_is_refused_even_with_the_token(client):
    # a name elsewhere that resolves to 127.0.0.1
    assert client.get("/api/session", headers={"host": "evil.example:8765"}).status_code == 403
    assert client.get("/api/session", headers={"host": "localhost:8765"}).status_code == 200


def test_only_the_page_itself_may_change_something(client, small):
    given = {"who": "anna", "edit": "merge", "mapping": {"1": "3"}}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:8888"},  # another server of this machine: the same site to cookies
        {"origin": "https://127.0.0.1:8765"},
        {"origin": "null"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
    ):
        for path in ("/api/clusters", f"/s/{TOKEN}/api/clusters"):
            assert client.post(path, json=given, headers=headers).status_code == 403, headers
        assert client.get("/api/session", headers=headers).status_code == 200
    assert "1" in set(small["nimbus"].obs["metacluster"])
    own = {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}
    assert client.post(f"/s/{TOKEN}/api/clusters", json=given, headers=own).status_code == 200
    assert "1" not in set(small["nimbus"].obs["metacluster"])


@pytest.mark.parametrize("path", ["/api/clusters", "/api/answers", "/api/save", "/api/training-set"])
def test_what_forms_can_send_is_refused(client, path):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        found = client.post(path, content=b"{}", headers={"content-type": kind})
        assert found.status_code == 415, kind
    kind = {"content-type": "application/json; charset=utf-8"}
    assert client.post("/api/clusters", content=b"{}", headers=kind).status_code == 400


def test_a_large_request_is_refused_before_it_is_read(client, session):
    read = []

    def parts(n):
        for i in range(n):
            read.append(i)
            yield b" " * 2**18

    headers = {"content-type": "application/json"}
    found = client.post("/api/answers", content=b"{" * 2_000_000, headers=headers)
    assert found.status_code == 413
    assert client.post("/api/answers", content=parts(8), headers=headers).status_code == 413
    for length in ("-1", "x", "9" * 30):
        found = client.post("/api/answers", content=b"{}", headers=headers | {"content-length": length})
        assert found.status_code == 413, length
    # as a server gets it: what says that it is too large is not asked for
    with app.review(session.sdata) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.putrequest("POST", "/api/answers")
        for name, value in {"x-review-token": server._token, "content-length": "2000000", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()  # and not a byte of it
        assert connection.getresponse().status == 413
        connection.close()


def test_hosts_of_other_programs_tests_are_foreign(client):
    assert client.get("/api/session", headers={"host": "testserver"}).status_code == 403


def test_a_channel_asked_for_twice_comes_twice(client, session):
    for _ in range(2):  # read, then kept
        once = [client.get(f"/tiles/0/0/0/0/image?c={c}").content for c in (0, 2)]
        session.tiles.cache.__init__()
        assert client.get("/tiles/0/0/0/0/image?c=0,2,0").content == once[0] + once[1] + once[0]
        assert client.get("/tiles/0/0/0/0/image?c=2,2").content == once[1] * 2
    assert client.get("/tiles/0/0/0/0/image?c=0,0,0,0,0").status_code == 400


def test_the_page_sends_the_clusters_that_it_shows(client):
    seen = client.get("/api/clusters").json()["state"]
    given = {"who": "anna", "edit": "merge", "mapping": {"1": "3"}, "seen": seen}
    assert client.post("/api/clusters", json=given).json()["state"] != seen
    again = client.post("/api/clusters", json=given | {"mapping": {"2": "3"}})
    assert again.status_code == 400
    assert "reload" in again.json()["error"]


def test_the_page_asks_for_nothing_from_elsewhere(client):
    page = client.get("/")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    todo, seen = {"index.html", "style.css"}, {}
    while todo:
        name = todo.pop()
        seen[name] = client.get(f"/static/{name}").text
        todo |= {f"js/{m}" for m in re.findall(r'from "\./(\w+\.js)"', seen[name])} - set(seen)
        todo |= {m.removeprefix("static/") for m in re.findall(r'src="(static/[^"]+)"', seen[name])} - set(
            seen
        )
    assert {"js/main.js", "js/view.js", "js/composite.js"} <= set(seen)
    for name, text in seen.items():
        assert not re.search(r"https?://|//cdn", text), name


OUTSIDE = (
    "/static/../_log.py",
    "/static/%2e%2e/_log.py",
    "/static/..%2f..%2f..%2fetc/passwd",
    "/static//etc/passwd",
    "/../t.zarr/zarr.json",
    "/etc/passwd",
    "/tiles/2/0/0/0/cells",
    "/tiles/0/1/0/0/cells",
    "/tiles/0/0/1/0/cells",
    "/tiles/0/0/0/-1/cells",
    "/tiles/0/0/0/0/zarr.json",
    "/tiles/0/0/0/0/image?c=4",
    "/tiles/0/0/0/0/image?c=x",
    "/tiles/0/0/0/0/image",
    "/crops/72.png?marker=CD3",
    "/crops/0.png?marker=../CD3",
    "/crops/0.png",
    "/api/fields/2/cells",
    "/api/fields/0/values/score/CD4",
    "/api/fields/0/values/X/CD3",
    "/api/fields/0/contrast/4",
    "/api/queue?marker=CD4",
)


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_is_not_there_is_404(client, path):
    assert client.get(path).status_code == 404


def test_paths_that_climb_are_404_as_they_are_sent(stored):
    # clients tidy paths up before they send them: this one does not
    with app.review(stored) as server:
        for path in ("/../../etc/passwd", "/static/../../_log.py", "/s/{}/../../etc/passwd"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.putrequest("GET", path.format(server._token))
            connection.putheader("x-review-token", server._token)
            connection.endheaders()
            assert connection.getresponse().status == 404
            connection.close()


def test_tiles_hold_the_pixels_and_the_cells(client, session, small):
    image = np.frombuffer(client.get("/tiles/0/0/0/0/image?c=2,0").content, np.uint8).reshape(2, 256, 256)
    stored = np.asarray(small["fov0_image"].data)
    for k, c in enumerate((2, 0)):
        full = session.tiles.full(0, c)
        wanted = np.round(255 * np.sqrt(np.clip(stored[c] / full, 0, 1)))
        assert np.abs(image[k, :90, :90].astype(int) - wanted).max() <= 1
        assert not image[k, 90:].any()
    cells = np.frombuffer(client.get("/tiles/0/0/0/0/cells").content, "<u4").reshape(256, 256)
    labels = np.asarray(small["fov0_labels"].data)
    ids = np.concatenate([[0], session.fields[0].ids])
    np.testing.assert_array_equal(ids[cells[:90, :90] & ~EDGE], labels)
    # by hand: a px of a cell with another value above, below, left or right
    for y in range(1, 89):
        for x in range(1, 89):
            around = {labels[y - 1, x], labels[y + 1, x], labels[y, x - 1], labels[y, x + 1]}
            assert bool(cells[y, x] & EDGE) == (labels[y, x] > 0 and around != {labels[y, x]})


def test_a_coarser_tile_shows_the_same_cells(reviewed):
    session = Session(reviewed(1, side=600, pitch=30))
    field = session.fields[0]
    assert field.n_levels == 3
    for level in (1, 2):
        cells = np.frombuffer(session.tiles.cells(0, level, 0, 0), "<u4").reshape(256, 256) & ~EDGE
        x, y = (field.xy / 2**level).astype(int).T
        here = (x < 256) & (y < 256)
        np.testing.assert_array_equal(cells[y[here], x[here]], np.flatnonzero(here) + 1)
        image = np.frombuffer(session.tiles.image(0, level, 0, 0, [0]), np.uint8).reshape(256, 256)
        assert image[y[here], x[here]].min() > 150  # nuclei are bright in their middles


def test_cells_are_sent_in_the_order_of_their_ids(client, session, small):
    body = client.get("/api/fields/1/cells").content
    n = len(session.fields[1].ids)
    rows, x = np.frombuffer(body, "<u4", n), np.frombuffer(body, "<f4", n, 4 * n)
    codes = np.frombuffer(body, "<i2", n, 12 * n)
    obs = small["nimbus"].obs.iloc[rows]
    assert (obs["region"] == "fov1_labels").all()
    assert np.all(np.diff(obs["instance_id"]) > 0)
    np.testing.assert_allclose(x, small["nimbus"].obsm["spatial"][rows, 0])
    names = client.get("/api/clusters").json()["names"]
    assert [names[c] for c in codes] == obs["metacluster"].tolist()
    scores = np.frombuffer(client.get("/api/fields/1/values/score/CD20").content, "<f4")
    np.testing.assert_array_equal(scores, small["nimbus"].X[rows, 1])


def test_crops_are_pictures_with_an_outline(client):
    for query in ("marker=CD3", "marker=CD3&context=HH3", "marker=CD3&low=0&high=255"):
        picture = imagecodecs.png_decode(client.get(f"/crops/0.png?{query}").content)  # at the corner: padded
        assert picture.shape[2] == 3
        assert picture.shape[0] == picture.shape[1] >= 160
        assert (picture == (255, 198, 63)).all(-1).sum() > 30
    assert client.get("/crops/0.png?marker=CD3&low=a&high=b").status_code == 400


def test_merge_rename_undo(client, small):
    adata = small["nimbus"]
    before = adata.obs["metacluster"].copy()

    def edit(**given):
        return client.post("/api/clusters", json={"who": "anna", **given})

    found = edit(edit="merge", mapping={"1": "3"}).json()
    assert found["names"] == ["0", "2", "3", "4"]
    expected = adata.to_df().groupby(before.astype(str).replace("1", "3")).mean().to_numpy()
    np.testing.assert_allclose(found["means"], expected, atol=1e-4)
    assert edit(edit="name", mapping={"3": "B cell"}).json()["names"] == ["0", "2", "B cell", "4"]
    assert edit(edit="undo").json()["names"] == found["names"]
    assert edit(edit="undo").json()["edits"] == []
    assert adata.obs["metacluster"].tolist() == before.tolist()
    for wrong in (
        {"edit": "undo"},
        {"edit": "merge", "mapping": {}},
        {"edit": "merge", "mapping": []},
        {"edit": "name", "mapping": {"1": "2"}},
        {"edit": "name", "mapping": {"1": " "}},
        {"edit": "drop", "mapping": {"1": "2"}},
        {"edit": "merge", "mapping": {"1": "2"}, "who": ""},
    ):
        assert edit(**wrong).status_code == 400, wrong
    assert edit(edit="merge", mapping={"9": "0"}).status_code == 404
    assert adata.obs["metacluster"].tolist() == before.tolist()


def test_answers_csv_and_progress(client, small):
    def answer(who, row, what, marker="CD3"):
        given = {"who": who, "answers": [{"row": row, "marker": marker, "answer": what}]}
        return client.post("/api/answers", json=given)

    for who, row, what in [("anna", 3, "positive"), ("ben", 3, "negative"), ("anna", 40, "negative")]:
        assert answer(who, row, what).status_code == 200
    assert answer("=ben", 40, "skip").status_code == 200
    found = client.get("/api/progress").json()
    assert found["reviewers"] == {"=ben": 1, "anna": 2, "ben": 1}
    statistics = found["markers"]["CD3"]
    assert (statistics["reviewed"], statistics["disputed"], statistics["between"]) == (2, 1, 0.0)
    assert statistics["agreement"] == float(small["nimbus"].X[40, 0] <= 0.5)
    gold = small["nimbus"].layers["gold"]
    assert np.isnan(gold[3, 0])
    assert gold[40, 0] == 0
    table = pd.read_csv(io.StringIO(client.get("/api/answers.csv").text))
    assert table["reviewer"].tolist() == ["anna", "ben", "anna", "'=ben"]
    assert table["instance_id"].iloc[0] == small["nimbus"].obs["instance_id"].iloc[3]
    for wrong in (("", 3, "positive"), ("x" * 61, 3, "positive"), ("anna", 3, "maybe")):
        assert answer(*wrong).status_code == 400
    assert answer("anna", 3, "positive", "CD4").status_code == 404
    assert answer("anna", 72, "positive").status_code == 404
    json_type = {"content-type": "application/json"}
    assert client.post("/api/answers", content=b"[1]", headers=json_type).status_code == 400
    assert client.post("/api/answers", content=b"{", headers=json_type).status_code == 400


def test_saving_without_a_store_is_refused_in_words(client):
    found = client.post("/api/save", json={})
    assert found.status_code == 400
    assert "not backed by a zarr store" in found.json()["error"]


def test_the_server_listens_on_this_machine_only(small):
    with app.review(small) as server:
        assert server._socket.getsockname()[0] == "127.0.0.1"
        assert server.url.startswith(f"http://127.0.0.1:{server.port}/?token=")
        assert len(server._token) >= 32
        with pytest.raises(InputError, match=f"port={server.port} can't be used"):
            app.review(small, port=server.port)
    assert not server.running
    with pytest.raises(InputError, match="port=70000"):
        app.review(small, port=70_000)
