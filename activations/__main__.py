"""`python -m activations PICTURE.png`: draw every activation."""

from .gallery import main

if __name__ == "__main__":
    main()
