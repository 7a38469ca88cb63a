"""The weights of the playground's base, as `personality.playground.recipe` made them."""
