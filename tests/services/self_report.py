"""A process that describes itself: arguments, input, environment, folder, session and open descriptors."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    given = sys.stdin.read()
    leads = os.getsid(0) == os.getpid()
    descriptors = [number for number in range(100) if Path(f"/proc/self/fd/{number}").exists()]
    sys.stdout.write(json.dumps([sys.argv[1:], given, dict(os.environ), str(Path.cwd()), leads, descriptors]))
    sys.stderr.write("told")
    sys.exit(3)
