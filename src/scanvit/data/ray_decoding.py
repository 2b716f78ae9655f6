def require_ray():
    pass
