"""``python -m bench``. Next to nothing stands here, since every new process of a scenario reads it again."""

if __name__ == "__main__":
    import signal
    import sys

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt: servers are ended in order
    if sys.argv[1:2] == ["outage"]:  # no scenario: it measures no design, and has options of its own
        from bench.outage.command import main

        main(sys.argv[2:], prog_name="python -m bench outage")
    else:
        from bench.command import main

        main(prog_name="python -m bench")
