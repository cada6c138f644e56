"""What uvicorn makes the API server's connections with; it imports :data:`limited` by its name."""

from __future__ import annotations

from visionrl.connections import connection_limit, limited_protocol, raise_file_limit

raise_file_limit()
limited = limited_protocol(connection_limit())
