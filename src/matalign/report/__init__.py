"""Tables, figures, paper, atlas and widgets."""
