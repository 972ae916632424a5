"""Commands of the original scripts: tables of their flags, and the translator that makes native commands of them."""
