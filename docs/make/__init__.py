"""What makes the generated pages of docs/ and the README's picture from the code. Not part of the package."""
