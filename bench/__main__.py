"""``python -m bench``. Next to nothing stands here, since every new process of a scenario reads it again."""

if __name__ == "__main__":
    from bench.command import main

    main(prog_name="python -m bench")
