"""The real servers that tests and demos run against: how each is fetched, configured, started, asked if it is ready.

`scripts/services` is the command. One module for what every server needs (`keeping`: the state folder, processes,
ports; `fetching`: the cache of downloads) and one for each kind of server (`kafka`). A new kind is a class with the
methods of `keeping.Server` and one line in the table of `scripts/services`.
"""
