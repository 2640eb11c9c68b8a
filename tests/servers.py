"""Servers of buckets on this machine, for tests."""

import contextlib
import functools
import logging
import threading

import pytest


class Server:
  """moto's S3 behind a door that turns some requests away, as a busy server does."""

  def __init__(self):
    from moto.moto_server import werkzeug_app
    from werkzeug.serving import make_server

    self._app = werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)
    # asked: [(method, path)]. fail: (environ) → the status of a refusal, or None.
    self.asked, self.fail = [], lambda environ: None
    self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
    self.url = f"http://127.0.0.1:{self._server.server_port}"
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def _answer(self, environ, start):
    self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
    if (status := self.fail(environ)) is not None:
      start(status, [("Content-Length", "0")])
      return [b""]
    return self._app(environ, start)


@functools.cache
def _server():
  """The one server of this process: a client keeps the address that it was made with."""
  return Server()


def s3fs():
  """A filesystem of the server that the environment names, which believes nothing of before."""
  import s3fs as library

  return library.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


@contextlib.contextmanager
def s3():
  """A `Server` with the bucket "bucket", which the environment names."""
  pytest.importorskip("moto.moto_server.werkzeug_app")
  pytest.importorskip("s3fs")
  logging.getLogger("werkzeug").setLevel(logging.ERROR)
  names = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
  }
  server = _server()
  with pytest.MonkeyPatch.context() as patch:
    for name, value in (names | {"AWS_ENDPOINT_URL": server.url}).items():
      patch.setenv(name, value)
    filesystem = s3fs()
    filesystem.mkdir("bucket")
    try:
      yield server
    finally:
      server.asked, server.fail = [], lambda environ: None
      filesystem.rm("bucket", recursive=True)
