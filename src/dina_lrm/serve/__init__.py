"""Offer a reward: a server for scores over HTTP, and a page to try it.

What a request meets, from outside in: `connections` (headers in time), `guards` (host, key, size and pace of the body),
`routes` (one file a subject), `asked` (bytes to records), `engine` (batches of many requests' states). `app` puts them
together, `run` listens.
"""
