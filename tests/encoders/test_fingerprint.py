import subprocess
import sys


def test_it_needs_no_torch() -> None:
    script = "import sys, clapkit.encoders.fingerprint; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
