"""tmp"""
def render(report, panels_mb): return "<html>"
