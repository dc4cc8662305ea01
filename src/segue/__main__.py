"""``python -m segue``, the form that torchrun starts."""

from segue.cli import main

if __name__ == "__main__":
    main()
