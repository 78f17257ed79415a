"""The notebook: magics, the cell's session, the live card and the rollback panel. The only room that knows IPython."""
