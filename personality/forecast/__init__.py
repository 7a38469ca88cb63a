"""What a recipe is likely to do, before it is built: where its vectors overlap, oppose each other and get lost."""
