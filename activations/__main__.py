"""`python -m activations PICTURE.png`: draw every activation."""

from .gallery import main

main()
