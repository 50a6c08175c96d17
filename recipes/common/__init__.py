"""What a training run of any recipe is made of, whatever it learns."""
