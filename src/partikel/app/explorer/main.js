// Starts the page. `explorer` is for the console and for tests: the numbers that the page computes.

import { Explorer, tourState } from "./app.js";
import { FreeFlow } from "./flow.js";
import { energyDistance } from "./measures.js";
import { kernelScore } from "./kernels.js";
import { bandwidth, modelName, onPlane, Path, PlaneFlow } from "./plane.js";
import { keyedNormals, Stream } from "./random.js";
import { fromFragment, toFragment } from "./settings.js";
import { SOLVERS, Workspace } from "./solvers.js";
import { openTarget } from "./targets.js";
import { TOUR } from "./tour.js";

globalThis.explorer = {
  page: new Explorer(),
  bandwidth,
  energyDistance,
  FreeFlow,
  fromFragment,
  kernelScore,
  keyedNormals,
  modelName,
  onPlane,
  openTarget,
  Path,
  PlaneFlow,
  SOLVERS,
  Stream,
  TOUR,
  toFragment,
  tourState,
  Workspace,
};
