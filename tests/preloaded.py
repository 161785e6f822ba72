"""What the server of `tests/commands.py` imports before it forks. No thread may start here."""
import elias_utils  # noqa: F401
import eval  # noqa: F401
import predict  # noqa: F401
import train  # noqa: F401
