/* A module of nothing: it is there so that its file, which holds the operators in csrc/operators, is built, installed and
 * found as modules are. ONNX Runtime loads it. */
#include <Python.h>

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_operators"};

PyMODINIT_FUNC PyInit__operators(void) { return PyModuleDef_Init(&definition); }
