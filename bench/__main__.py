"""``python -m bench``. Next to nothing stands here, since every new process of a scenario reads it again."""

if __name__ == "__main__":
    import signal

    from bench.command import main

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt: servers are ended in order
    main(prog_name="python -m bench")
