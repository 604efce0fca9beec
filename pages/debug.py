"""Debug: what misleads the model here, and does undoing it help?"""

from neurflow_engine.store import Run
from pages.ui import cached, debug_answer, debug_fix, debug_flags, debug_groups, debug_images, show
from pages.ui.debug_scene import Scene


def debug_page(run: Run) -> None:
    with show.sentences():
        debug_images.follow_job()
    evaluation = debug_images.images_of(run)
    report = debug_flags.newest_report(run, evaluation)
    labels, verdicts = cached.labels().for_run(run.id, evidence=False), cached.verdicts().for_run(run.id, report.id if report else None)
    scene = Scene(run, evaluation, report, labels, verdicts)
    with show.sentences():
        debug_flags.banner(scene)
    pictures, details = show.split("debug", [6, 8])
    shown = []
    with pictures:
        debug_images.choose_images(run, evaluation)
        if evaluation is None:
            show.empty("No images yet", "Choose a folder above to see where the model is wrong in it, or upload an image below.")
        else:
            shown = debug_images.images(scene)
        debug_images.upload()
    later = debug_answer.nothing
    with details, show.sentences():
        paths = scene.paths()
        if len(paths) == 1:
            later = debug_answer.one_image(scene, paths[0])
            debug_groups.views(scene, paths[0])
        elif paths or shown:
            later = debug_answer.several_images(scene, paths or shown, bool(paths))
        else:
            show.empty("Pick an image", "The model's answer, the groups it sees in the image, and a switch to silence each appear here.")
    if report:
        debug_groups.table(scene)
        debug_fix.section(scene)
    with show.sentences():
        later()


show.run_page("Debug", "What misleads the model here, and does undoing it help?", debug_page)
