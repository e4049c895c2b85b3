"""``python -m sidlsg`` is the same as ``sidlsg`` (and what ``torchrun -m sidlsg`` runs)."""

from sidlsg.cli import main

if __name__ == "__main__":
    main()
