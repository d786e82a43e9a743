"""The side by side: the same rows one after the other, by threads, by processes and on one event loop."""
