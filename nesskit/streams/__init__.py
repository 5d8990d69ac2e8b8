"""Streams of tasks by name: where their files come from, how they are read, and what a task is."""

from nesskit.streams.fetch import check_stream, fetch_stream
from nesskit.streams.load import load_stream, load_stream_function
from nesskit.streams.names import LOADERS

__all__ = ["LOADERS", "check_stream", "fetch_stream", "load_stream", "load_stream_function"]
