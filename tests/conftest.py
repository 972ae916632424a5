"""What all tests rely on."""

import signal

# A shell that starts tests in the background ignores Ctrl-C for them and for every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
